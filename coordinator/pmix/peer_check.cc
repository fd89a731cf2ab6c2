// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/pmix/peer_check.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/base/unique_fd.h"

namespace icp::pmix {
namespace {

struct Request {
  nlmsghdr header;
  inet_diag_req_v2 body;
};

}  // namespace

bool is_own_peer(int fd) {
  sockaddr_in own{}, peer{};
  socklen_t own_length = sizeof own, peer_length = sizeof peer;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &own_length) != 0 ||
      ::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_length) != 0 || own.sin_family != AF_INET)
    return false;
  Request request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.body.sdiag_family = AF_INET;
  request.body.sdiag_protocol = IPPROTO_TCP;
  request.body.id.idiag_src[0] = peer.sin_addr.s_addr;
  request.body.id.idiag_sport = peer.sin_port;
  request.body.id.idiag_dst[0] = own.sin_addr.s_addr;
  request.body.id.idiag_dport = own.sin_port;
  request.body.id.idiag_cookie[0] = request.body.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  const UniqueFd kernel(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  if (!kernel || ::send(kernel.get(), &request, sizeof request, 0) < 0) return false;
  alignas(nlmsghdr) char buffer[8192];
  const ssize_t got = ::recv(kernel.get(), buffer, sizeof buffer, 0);
  const auto* header = reinterpret_cast<const nlmsghdr*>(buffer);
  if (got < 0 || !NLMSG_OK(header, static_cast<size_t>(got)) || header->nlmsg_type != SOCK_DIAG_BY_FAMILY) return false;
  const auto& message = *static_cast<const inet_diag_msg*>(NLMSG_DATA(header));
  // Where there is no such connection, the kernel answers with a listener of that port.
  return message.id.idiag_dport == own.sin_port && message.idiag_uid == ::geteuid();
}

}  // namespace icp::pmix
