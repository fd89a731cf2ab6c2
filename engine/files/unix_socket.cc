// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/unix_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <map>
#include <memory>

#include "engine/base/error.h"
#include "engine/files/unix_diag.h"

namespace icp {
namespace {

int socket_option(int fd, int name) {
  int value = 0;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0 ? value : 0;
}

std::string printable(const std::string& name) {
  if (name.empty()) return "a process outside of the job";
  return name[0] == '\0' ? "@" + name.substr(1) : name;
}

// All Unix sockets of the capsule with what the kernel says about them.
class SocketSet {
 public:
  struct Socket {
    Description* description;
    std::optional<UnixDiag> diag;
  };

  explicit SocketSet(Descriptions descriptions) {
    if (descriptions.empty()) return;
    UnixDiagSocket kernel;
    for (Description* description : descriptions) {
      const auto ino = static_cast<uint32_t>(description->stat.st_ino);
      sockets_.push_back({description, kernel.query(ino)});
      if (sockets_.back().diag) known_.emplace(ino, *sockets_.back().diag);
      const auto& diag = sockets_.back().diag;
      if (diag && diag->has_peer && diag->peer_ino != 0 && !known_.count(diag->peer_ino)) {
        if (auto peer = kernel.query(diag->peer_ino)) peers_.emplace(diag->peer_ino, *peer);
      }
    }
  }

  const std::vector<Socket>& sockets() const { return sockets_; }
  const UnixDiag* inside(uint32_t ino) const {
    const auto at = known_.find(ino);
    return at == known_.end() ? nullptr : &at->second;
  }
  std::string name_of(uint32_t ino) const {
    if (const UnixDiag* diag = inside(ino)) return diag->name;
    const auto at = peers_.find(ino);
    return at == peers_.end() ? "" : at->second.name;
  }
  // Both ends are in the capsule and connected to each other, or the other one has closed.
  bool paired(const UnixDiag& diag) const {
    if (!diag.has_peer) return false;
    if (diag.peer_ino == 0) return diag.type == SOCK_DGRAM || diag.shutdown == 3;
    const UnixDiag* peer = inside(diag.peer_ino);
    return peer && peer->has_peer && peer->peer_ino == diag.ino && peer->ino != diag.ino;
  }

 private:
  std::vector<Socket> sockets_;
  std::map<uint32_t, UnixDiag> known_, peers_;
};

// A bound socket must still be reachable by its name, and the name must not depend on a working directory.
void check_name(FileScan& scan, Description& socket, const UnixDiag& diag) {
  if (diag.name.empty() || diag.name[0] == '\0') return;
  struct stat now {};
  if (diag.name[0] != '/') {
    scan.refuse(socket, fmt::format("Unix socket bound to the relative path {}", diag.name),
                "bind it to an absolute path");
  } else if (scan.stat_path(socket.uses.front().process, diag.name, now) != 0 || !S_ISSOCK(now.st_mode)) {
    scan.refuse(socket, fmt::format("Unix socket bound to {}, which is gone", diag.name),
                "close it before a checkpoint");
  }
}

void check_unpaired(FileScan& scan, const SocketSet& all, Description& socket, const UnixDiag& diag) {
  const char* const later = "try again in a moment";
  if (diag.listening) {
    if (diag.name.empty()) {
      scan.refuse(socket, "listening Unix socket without a name", "close it before a checkpoint");
    } else if (diag.queued > 0) {
      scan.refuse(socket, fmt::format("connections to Unix socket {} waiting to be accepted", printable(diag.name)),
                  later, true);
    }
  } else if (diag.type == SOCK_DGRAM) {
    if (diag.has_peer && all.name_of(diag.peer_ino).empty()) {
      scan.refuse(socket, "Unix datagram socket connected to a process outside of the job",
                  "close it before a checkpoint");
    }
  } else if (diag.has_peer && diag.peer_ino == 0) {
    scan.refuse(socket, "Unix socket connection that is not accepted yet", later, true);
  } else if (diag.has_peer) {
    scan.refuse(socket, fmt::format("Unix socket connected to {}", printable(all.name_of(diag.peer_ino))),
                "close the connection before a checkpoint");
  }
  check_name(scan, socket, diag);
}

void check_socket(FileScan& scan, const SocketSet& all, const SocketSet::Socket& socket) {
  if (!socket.diag) {
    if (scan.checking() && scan.take(*socket.description) < 0) return;  // closed meanwhile
    scan.refuse(*socket.description, "Unix socket of another network namespace", "close it before a checkpoint");
    return;
  }
  if (socket.description->info.number("scm_fds").value_or(0) > 0) {
    scan.refuse(*socket.description, "descriptors on their way through a Unix socket (SCM_RIGHTS)",
                "try again in a moment", true);
    return;
  }
  if (!all.paired(*socket.diag)) check_unpaired(scan, all, *socket.description, *socket.diag);
}

void capture_socket(FileScan& scan, const SocketSet& all, const SocketSet::Socket& socket) {
  const UnixDiag& diag = *socket.diag;
  const int fd = scan.take(*socket.description);
  pb::UnixSocket& message = *socket.description->message->mutable_unix_socket();
  message.set_type(diag.type);
  message.set_ino(diag.ino);
  message.set_send_buffer(static_cast<uint32_t>(socket_option(fd, SO_SNDBUF)));
  message.set_receive_buffer(static_cast<uint32_t>(socket_option(fd, SO_RCVBUF)));
  message.set_passcred(socket_option(fd, SO_PASSCRED) != 0);
  message.set_shut_read((diag.shutdown & 1) != 0);
  message.set_shut_write((diag.shutdown & 2) != 0);
  if (all.paired(diag)) {
    message.set_paired(true);
    message.set_peer_ino(diag.peer_ino);
    for (std::string& data : peek_socket(fd, diag.type, diag.queued)) message.add_queue(std::move(data));
    return;
  }
  message.set_name(diag.name);
  message.set_listening(diag.listening);
  message.set_backlog(diag.backlog);
  if (diag.has_peer) message.set_peer_name(all.name_of(diag.peer_ino));
  if (diag.type == SOCK_DGRAM && !diag.name.empty()) {
    std::vector<std::string> senders;
    for (std::string& data : peek_socket(fd, diag.type, diag.queued, &senders)) message.add_queue(std::move(data));
    for (std::string& sender : senders) message.add_queue_senders(std::move(sender));
  }
  struct stat path {};
  if (diag.name.starts_with('/') && scan.stat_path(socket.description->uses.front().process, diag.name, path) == 0) {
    message.set_mode(path.st_mode & 0777);
  }
}

class UnixSocketKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kUnixSocket; }

  bool recognises(FileScan& scan, Description& description) const override {
    if (!S_ISSOCK(description.stat.st_mode) || (description.info.flags & O_PATH)) return false;
    const int fd = scan.take(description);
    return fd >= 0 && socket_option(fd, SO_DOMAIN) == AF_UNIX;
  }

  void check(FileScan& scan, Descriptions descriptions) const override {
    const SocketSet all(descriptions);
    for (const auto& socket : all.sockets()) check_socket(scan, all, socket);
  }

  void capture(FileScan& scan, const ObjectResolver&, Descriptions descriptions) const override {
    const SocketSet all(descriptions);
    for (const auto& socket : all.sockets()) {
      if (!socket.diag) throw_error(ErrorKind::kGone, "a Unix socket vanished while it was looked at");
      capture_socket(scan, all, socket);
    }
  }

  void create(RestoreContext& context, ImageFiles files) const override { create_unix_sockets(context, files); }
};

constexpr size_t kPeekBuffer = 16u << 20;  // address space only: pages are touched as far as data comes
constexpr size_t kMostMessages = 1u << 20;

// While it lives, MSG_PEEK reads on from where the last one ended (SO_PEEK_OFF, a property of the socket that
// the processes may use, too).
class PeekOffset {
 public:
  explicit PeekOffset(int fd) : fd_(fd) {
    socklen_t length = sizeof old_;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &old_, &length) != 0) throw_errno("cannot look into a Unix socket");
    const int start = 0;
    if (::setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &start, sizeof start) != 0) {
      throw_errno("cannot look into a Unix socket");
    }
  }
  ~PeekOffset() { ::setsockopt(fd_, SOL_SOCKET, SO_PEEK_OFF, &old_, sizeof old_); }
  PeekOffset(const PeekOffset&) = delete;
  PeekOffset& operator=(const PeekOffset&) = delete;

 private:
  int fd_;
  int old_ = -1;
};

// A path's terminating zero is no part of it.
std::string name_in(const sockaddr_un& address, socklen_t length) {
  constexpr socklen_t kFamily = offsetof(sockaddr_un, sun_path);
  if (length <= kFamily) return {};
  std::string name(address.sun_path, length - kFamily);
  while (name[0] != '\0' && name.back() == '\0') name.pop_back();
  return name;
}

// A peek gives copies of descriptors in flight; they are closed at once.
bool close_received(msghdr& message) {
  bool any = false;
  for (cmsghdr* control = CMSG_FIRSTHDR(&message); control; control = CMSG_NXTHDR(&message, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) continue;
    any = true;
    const size_t count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) ::close(reinterpret_cast<int*>(CMSG_DATA(control))[i]);
  }
  return any;
}

}  // namespace

std::vector<std::string> peek_socket(int fd, int type, uint32_t queued, std::vector<std::string>* senders) {
  std::vector<std::string> queue;
  if (type != SOCK_DGRAM && queued == 0) return queue;
  const PeekOffset offset(fd);
  const std::unique_ptr<char[]> buffer(new char[kPeekBuffer]);  // not cleared, on purpose
  // One more read than needed would take a pending error (ECONNRESET) away from the process.
  for (uint64_t bytes = 0; type == SOCK_DGRAM ? queue.size() < kMostMessages : bytes < queued;) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 253) + CMSG_SPACE(sizeof(ucred))];
    iovec data{buffer.get(), kPeekBuffer};
    sockaddr_un sender{};
    msghdr message{};
    message.msg_name = &sender;
    message.msg_namelen = sizeof sender;
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got = ::recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == ECONNRESET || errno == ENOTCONN) break;
      throw_errno("cannot look into a Unix socket");
    }
    if (close_received(message)) {
      throw Error(ErrorKind::kBusy, "descriptors are on their way through a Unix socket (SCM_RIGHTS)", 0,
                  "try again in a moment");
    }
    if (message.msg_flags & MSG_TRUNC) throw_error(ErrorKind::kRefused, "a message in a Unix socket is too long");
    if (got == 0 && type != SOCK_DGRAM) break;  // the end of a stream
    if (senders) senders->push_back(name_in(sender, message.msg_namelen));
    bytes += static_cast<uint64_t>(got);
    if (type == SOCK_STREAM && !queue.empty()) {
      queue.front().append(buffer.get(), static_cast<size_t>(got));
    } else {
      queue.emplace_back(buffer.get(), static_cast<size_t>(got));
    }
  }
  return queue;
}

const FileKind& unix_socket_kind() {
  static const UnixSocketKind kind;
  return kind;
}

}  // namespace icp
