// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/unix_diag.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sys/socket.h>

#include <cstring>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr int kTcpListen = 10;  // TCP_LISTEN: Unix sockets use TCP's state numbers

struct Request {
  nlmsghdr header;
  unix_diag_req body;
};

Request request_for(uint32_t ino, uint16_t flags) {
  Request request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  request.header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
  request.body.sdiag_family = AF_UNIX;
  request.body.udiag_states = UINT32_MAX;
  request.body.udiag_ino = ino;
  request.body.udiag_cookie[0] = request.body.udiag_cookie[1] = UINT32_MAX;  // any: INET_DIAG_NOCOOKIE
  request.body.udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
  return request;
}

template <typename T>
T payload(const rtattr* attribute) {
  T value{};
  std::memcpy(&value, RTA_DATA(attribute), std::min(sizeof value, static_cast<size_t>(RTA_PAYLOAD(attribute))));
  return value;
}

UnixDiag parse(const nlmsghdr* header) {
  const auto* message = static_cast<const unix_diag_msg*>(NLMSG_DATA(header));
  UnixDiag diag;
  diag.ino = message->udiag_ino;
  diag.type = message->udiag_type;
  diag.listening = message->udiag_state == kTcpListen;
  int left = static_cast<int>(header->nlmsg_len - NLMSG_LENGTH(sizeof *message));
  const auto* attribute = reinterpret_cast<const rtattr*>(message + 1);
  for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
    switch (attribute->rta_type) {
      case UNIX_DIAG_NAME:
        diag.name.assign(static_cast<const char*>(RTA_DATA(attribute)), RTA_PAYLOAD(attribute));
        break;
      case UNIX_DIAG_PEER:
        diag.has_peer = true;
        diag.peer_ino = payload<uint32_t>(attribute);
        break;
      case UNIX_DIAG_SHUTDOWN:
        diag.shutdown = payload<uint8_t>(attribute);
        break;
      case UNIX_DIAG_RQLEN: {
        const auto lengths = payload<unix_diag_rqlen>(attribute);
        diag.queued = lengths.udiag_rqueue;
        (diag.listening ? diag.backlog : diag.outgoing) = lengths.udiag_wqueue;
        break;
      }
      case UNIX_DIAG_VFS:
        diag.path_ino = payload<unix_diag_vfs>(attribute).udiag_vfs_ino;
        break;
      case UNIX_DIAG_ICONS:
        diag.pending.resize(RTA_PAYLOAD(attribute) / sizeof(uint32_t));
        std::memcpy(diag.pending.data(), RTA_DATA(attribute), diag.pending.size() * sizeof(uint32_t));
        break;
      default:
        break;
    }
  }
  // A path's terminating zero may be part of it.
  while (!diag.name.empty() && diag.name[0] != '\0' && diag.name.back() == '\0') diag.name.pop_back();
  return diag;
}

}  // namespace

UnixDiagSocket::UnixDiagSocket() : fd_(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)) {
  if (!fd_) throw_errno("cannot ask the kernel about Unix sockets");
}

void UnixDiagSocket::dump() {
  const Request request = request_for(0, NLM_F_DUMP);
  if (::send(fd_.get(), &request, sizeof request, 0) < 0) throw_errno("cannot ask the kernel about Unix sockets");
  all_.emplace();
  alignas(nlmsghdr) char buffer[65536];
  for (bool done = false; !done;) {
    const ssize_t got = ::recv(fd_.get(), buffer, sizeof buffer, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw_errno("cannot hear from the kernel about Unix sockets");
    size_t left = static_cast<size_t>(got);
    for (const auto* header = reinterpret_cast<const nlmsghdr*>(buffer); NLMSG_OK(header, left);
         header = NLMSG_NEXT(header, left)) {
      if (header->nlmsg_type == NLMSG_ERROR) throw_error(ErrorKind::kSystem, "the kernel does not list Unix sockets");
      done = done || header->nlmsg_type == NLMSG_DONE;
      if (header->nlmsg_type != SOCK_DIAG_BY_FAMILY) continue;
      UnixDiag diag = parse(header);
      all_->insert_or_assign(diag.ino, std::move(diag));
    }
  }
}

std::optional<UnixDiag> UnixDiagSocket::query(uint32_t ino) {
  if (all_) {
    const auto known = all_->find(ino);
    if (known != all_->end()) return known->second;
  }
  const Request request = request_for(ino, 0);
  if (::send(fd_.get(), &request, sizeof request, 0) < 0) throw_errno("cannot ask the kernel about Unix sockets");
  alignas(nlmsghdr) char buffer[16384];
  const ssize_t got = ::recv(fd_.get(), buffer, sizeof buffer, 0);
  if (got < 0) throw_errno("cannot hear from the kernel about Unix sockets");
  const auto* header = reinterpret_cast<const nlmsghdr*>(buffer);
  if (!NLMSG_OK(header, static_cast<size_t>(got)) || header->nlmsg_type != SOCK_DIAG_BY_FAMILY) return {};
  return parse(header);
}

}  // namespace icp
