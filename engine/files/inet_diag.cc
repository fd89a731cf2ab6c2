// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/inet_diag.h"

#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>

#include <cstring>
#include <functional>
#include <vector>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr uint32_t kLeftoverStates =
    1u << kTcpFinWait1 | 1u << kTcpFinWait2 | 1u << kTcpTimeWait | 1u << kTcpLastAck | 1u << kTcpClosing;

struct Request {
  nlmsghdr header;
  inet_diag_req_v2 body;
};

Request request_for(uint16_t type, int family, uint16_t flags) {
  Request request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = type;
  request.header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
  request.body.sdiag_family = static_cast<uint8_t>(family);
  request.body.sdiag_protocol = IPPROTO_TCP;
  request.body.idiag_states = UINT32_MAX;
  request.body.id.idiag_cookie[0] = request.body.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  return request;
}

void set_addresses(Request& request, const InetAddress& local, const InetAddress& remote) {
  std::memcpy(request.body.id.idiag_src, local.ip.data(), local.ip.size());
  std::memcpy(request.body.id.idiag_dst, remote.ip.data(), remote.ip.size());
  request.body.id.idiag_sport = htons(local.port);
  request.body.id.idiag_dport = htons(remote.port);
  request.body.id.idiag_if = local.scope;
}

// IPv4 connections of IPv6 sockets come with mapped addresses.
std::string ip_of(int family, const __be32* bytes) {
  sockaddr_storage address{};
  address.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) {
    std::memcpy(&reinterpret_cast<sockaddr_in&>(address).sin_addr, bytes, 4);
  } else {
    std::memcpy(&reinterpret_cast<sockaddr_in6&>(address).sin6_addr, bytes, 16);
  }
  return InetAddress::of(address).ip;
}

InetDiag parse(const inet_diag_msg& message) {
  return {message.idiag_state, message.idiag_inode, message.idiag_uid, message.idiag_rqueue};
}

}  // namespace

bool InetDiag::leftover() const { return ino == 0 && (1u << state & kLeftoverStates) != 0; }

InetDiagSocket::InetDiagSocket() : fd_(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)) {
  if (!fd_) throw_errno("cannot ask the kernel about TCP connections");
}

std::optional<InetDiag> InetDiagSocket::query(const InetAddress& local, const InetAddress& remote) {
  if (!local.valid() || local.ip.size() != remote.ip.size()) return {};
  Request request = request_for(SOCK_DIAG_BY_FAMILY, local.ip.size() == 4 ? AF_INET : AF_INET6, 0);
  set_addresses(request, local, remote);
  if (::send(fd_.get(), &request, sizeof request, 0) < 0) throw_errno("cannot ask the kernel about TCP connections");
  alignas(nlmsghdr) char buffer[8192];
  const ssize_t got = ::recv(fd_.get(), buffer, sizeof buffer, 0);
  if (got < 0) throw_errno("cannot hear from the kernel about TCP connections");
  const auto* header = reinterpret_cast<const nlmsghdr*>(buffer);
  if (!NLMSG_OK(header, static_cast<size_t>(got)) || header->nlmsg_type != SOCK_DIAG_BY_FAMILY) return {};
  const auto& message = *static_cast<const inet_diag_msg*>(NLMSG_DATA(header));
  // Where there is no connection, the kernel answers with a listener of that port.
  if (message.idiag_state == kTcpListen || ntohs(message.id.idiag_dport) != remote.port) return {};
  return parse(message);
}

namespace {

// Sends a request for a list, and calls `visit` with each entry. False, with errno: the kernel does not tell.
bool for_each_entry(int fd, const Request& request, const std::function<void(const nlmsghdr&)>& visit) {
  if (::send(fd, &request, sizeof request, 0) < 0) return false;
  alignas(nlmsghdr) char buffer[32768];
  for (;;) {
    const ssize_t got = ::recv(fd, buffer, sizeof buffer, 0);
    if (got <= 0) return got == 0;
    size_t left = static_cast<size_t>(got);
    bool done = false;
    for (const auto* header = reinterpret_cast<const nlmsghdr*>(buffer); NLMSG_OK(header, left);
         header = NLMSG_NEXT(header, left)) {
      done = done || header->nlmsg_type == NLMSG_DONE || header->nlmsg_type == NLMSG_ERROR;
      if (header->nlmsg_type == SOCK_DIAG_BY_FAMILY) visit(*header);
    }
    if (done) return true;
  }
}

void for_each_connection(int fd, const Request& request, const std::function<void(const inet_diag_msg&)>& visit) {
  const auto each = [&visit](const nlmsghdr& header) {
    visit(*static_cast<const inet_diag_msg*>(NLMSG_DATA(&header)));
  };
  if (!for_each_entry(fd, request, each)) throw_errno("cannot ask the kernel about TCP connections");
}

}  // namespace

bool InetDiagSocket::others_listen(uint16_t port, uid_t uid) {
  bool found = false;
  for (const int family : {AF_INET, AF_INET6}) {
    Request dump = request_for(SOCK_DIAG_BY_FAMILY, family, NLM_F_DUMP);
    dump.body.id.idiag_sport = htons(port);
    dump.body.idiag_states = 1u << kTcpListen;
    for_each_connection(fd_.get(), dump,
                        [&](const inet_diag_msg& message) { found = found || message.idiag_uid != uid; });
  }
  return found;
}

void InetDiagSocket::end_leftovers(const InetAddress& local, const std::optional<InetAddress>& remote, uid_t uid) {
  // A list is made by looking through all connections of the host.
  if (remote && !query(local, *remote)) return;
  std::vector<Request> targets, ownerless;  // TIME_WAIT has lost its owner
  bool others = false;                      // use the port
  for (const int family : {AF_INET, AF_INET6}) {
    Request dump = request_for(SOCK_DIAG_BY_FAMILY, family, NLM_F_DUMP);
    dump.body.id.idiag_sport = htons(local.port);
    if (remote) dump.body.id.idiag_dport = htons(remote->port);
    for_each_connection(fd_.get(), dump, [&](const inet_diag_msg& message) {
      const InetDiag diag = parse(message);
      const bool same_ends = !remote || (ip_of(family, message.id.idiag_src) == local.ip &&
                                         ip_of(family, message.id.idiag_dst) == remote->ip);
      others = others || (diag.ino != 0 && diag.uid != uid);
      if (!diag.leftover() || !same_ends || (diag.state != kTcpTimeWait && diag.uid != uid)) return;
      Request target = request_for(SOCK_DESTROY, family, NLM_F_ACK);
      target.body.id = message.id;
      (diag.state == kTcpTimeWait ? ownerless : targets).push_back(target);
    });
  }
  // Then it may be another user's.
  if (!others) targets.insert(targets.end(), ownerless.begin(), ownerless.end());
  char buffer[8192];
  for (const Request& target : targets) {
    if (::send(fd_.get(), &target, sizeof target, 0) < 0) return;
    (void)::recv(fd_.get(), buffer, sizeof buffer, 0);  // the acknowledgement, or why not
  }
}

namespace {

// "idiag_cookie": two halves of what SO_COOKIE tells.
uint64_t cookie_of(const inet_diag_msg& message) {
  return message.id.idiag_cookie[0] | static_cast<uint64_t>(message.id.idiag_cookie[1]) << 32;
}

int shutdown_in(const nlmsghdr& header) {
  const auto* message = static_cast<const inet_diag_msg*>(NLMSG_DATA(&header));
  size_t left = header.nlmsg_len - NLMSG_LENGTH(sizeof *message);
  for (const auto* attribute = reinterpret_cast<const rtattr*>(message + 1); RTA_OK(attribute, left);
       attribute = RTA_NEXT(attribute, left))
    if (attribute->rta_type == INET_DIAG_SHUTDOWN) return *static_cast<const uint8_t*>(RTA_DATA(attribute));
  return 0;
}

}  // namespace

int DatagramDiag::shutdown_of(int fd, int domain, int protocol) {
  uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  if (::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) != 0) return 0;
  const auto [table, is_new] = known_.try_emplace({domain, protocol});
  if (is_new) {
    // Where the kernel does not tell, none is known to be shut.
    const UniqueFd kernel(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
    Request dump = request_for(SOCK_DIAG_BY_FAMILY, domain, NLM_F_DUMP);
    dump.body.sdiag_protocol = static_cast<uint8_t>(protocol);
    for_each_entry(kernel.get(), dump, [&](const nlmsghdr& header) {
      const int how = shutdown_in(header);
      if (how != 0) table->second.emplace(cookie_of(*static_cast<const inet_diag_msg*>(NLMSG_DATA(&header))), how);
    });
  }
  const auto found = table->second.find(cookie);
  return found == table->second.end() ? 0 : found->second;
}

}  // namespace icp
