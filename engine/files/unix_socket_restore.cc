// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <thread>

#include "engine/base/error.h"
#include "engine/files/unix_socket.h"

namespace icp {
namespace {

constexpr size_t kMostQueued = 256u << 20;  // bytes

// While it lives, the thread's effective ids are the user's: that is whom SO_PEERCRED of a socket names as
// its maker. Raw calls: glibc's change every thread.
class MakerIdentity {
 public:
  explicit MakerIdentity(const Identity& identity) : files_(identity), active_(::geteuid() == 0), gid_(::getegid()) {
    if (!active_) return;
    if (::syscall(SYS_setresgid, -1, identity.gid, -1) != 0 || ::syscall(SYS_setresuid, -1, identity.uid, -1) != 0) {
      restore();
      throw_errno("cannot take the identity of user {}", identity.uid);
    }
  }
  ~MakerIdentity() { restore(); }
  MakerIdentity(const MakerIdentity&) = delete;
  MakerIdentity& operator=(const MakerIdentity&) = delete;

 private:
  void restore() const {
    if (!active_) return;
    if (::syscall(SYS_setresuid, -1, 0, -1) == 0 && ::syscall(SYS_setresgid, -1, gid_, -1) == 0) return;
    std::fputs("slurm-icp: cannot go back to the agent's own identity, giving up\n", stderr);
    std::abort();
  }

  FsIdentity files_;
  bool active_;
  gid_t gid_;
};

// A worker, which may not change its root directory, has the capsule's: that one's mounts are a copy of its own.
bool is_own_root(int root_fd) {
  struct stat own {
  }, capsule{};
  return ::stat("/", &own) == 0 && ::fstat(root_fd, &capsule) == 0 && own.st_dev == capsule.st_dev &&
         own.st_ino == capsule.st_ino;
}

// Runs `work` as the user in a thread whose root directory is the capsule's, so that names can be used as
// they are: binding to a detour would show in getsockname().
void in_capsule_root(const FileRestoreOptions& options, const std::function<void()>& work) {
  std::exception_ptr error;
  std::thread worker([&] {
    try {
      const bool there = ::geteuid() != 0 && is_own_root(options.root_fd);
      if (!there && (::unshare(CLONE_FS) != 0 || ::fchdir(options.root_fd) != 0 || ::chroot(".") != 0)) {
        throw_errno("cannot enter the root directory of the job");
      }
      const MakerIdentity as_user(options.identity);
      work();
    } catch (...) {
      error = std::current_exception();
    }
  });
  worker.join();
  if (error) std::rethrow_exception(error);
}

struct Address {
  sockaddr_un un{};
  socklen_t length = 0;

  Address(const pb::OpenFile& file, const std::string& name) {
    if (name.size() > sizeof un.sun_path || (name[0] != '\0' && name[0] != '/')) {
      throw_bad_file(file, "a Unix socket has no usable name");
    }
    un.sun_family = AF_UNIX;
    std::memcpy(un.sun_path, name.data(), name.size());
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&un); }
};

std::string printable(const std::string& name) { return name[0] == '\0' ? "@" + name.substr(1) : name; }

void check_values(const pb::OpenFile& file) {
  const pb::UnixSocket& socket = file.unix_socket();
  if (socket.type() != SOCK_STREAM && socket.type() != SOCK_DGRAM && socket.type() != SOCK_SEQPACKET) {
    throw_bad_file(file, fmt::format("a Unix socket of type {}", socket.type()));
  }
  if (socket.send_buffer() > INT_MAX || socket.receive_buffer() > INT_MAX || socket.backlog() > INT_MAX) {
    throw_bad_file(file, "a Unix socket's buffer is out of range");
  }
  size_t bytes = 0;
  for (const std::string& data : socket.queue()) bytes += data.size();
  if (bytes > kMostQueued) throw_bad_file(file, "too much data waits in a Unix socket");
  const bool addressed = socket.type() == SOCK_DGRAM && !socket.name().empty();
  if (!socket.paired() && !addressed && socket.queue_size() > 0) {
    throw_bad_file(file, "data waits in an unconnected Unix socket");
  }
  if (socket.queue_senders_size() != (socket.paired() ? 0 : socket.queue_size())) {
    throw_bad_file(file, "the datagrams in a Unix socket have not a sender each");
  }
  if (socket.paired() && (socket.listening() || !socket.name().empty() || !socket.peer_name().empty())) {
    throw_bad_file(file, "a Unix socket is both connected and bound");
  }
  if (socket.listening() && (socket.type() == SOCK_DGRAM || socket.name().empty())) {
    throw_bad_file(file, "a Unix socket that cannot listen does");
  }
  if (!socket.peer_name().empty() && socket.type() != SOCK_DGRAM) {
    throw_bad_file(file, "a Unix socket is connected to a name");
  }
}

// `value` as getsockopt() gave it, which is twice what setsockopt() wants (socket(7)).
void set_buffer(int fd, int force, int option, uint32_t value) {
  const int half = static_cast<int>(value / 2);
  if (value == 0 || ::setsockopt(fd, SOL_SOCKET, force, &half, sizeof half) == 0) return;
  ::setsockopt(fd, SOL_SOCKET, option, &half, sizeof half);  // up to the system's limit
}

void set_options(const pb::UnixSocket& socket, int fd) {
  set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, socket.send_buffer());
  set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, socket.receive_buffer());
  const int on = 1;
  if (socket.passcred() && ::setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0) {
    throw_errno("cannot set SO_PASSCRED of a Unix socket");
  }
}

// Puts the data that waited in `file` back, by sending it from the other end.
void refill(const pb::OpenFile& file, int sender) {
  const pb::UnixSocket& socket = file.unix_socket();
  if (socket.queue_size() == 0) return;
  uint64_t room = 1u << 18;
  for (const std::string& data : socket.queue()) room += 4 * data.size() + 4096;
  set_buffer(sender, SO_SNDBUFFORCE, SO_SNDBUF, static_cast<uint32_t>(std::min<uint64_t>(room, INT_MAX)));
  for (const std::string& data : socket.queue()) {
    size_t done = 0;
    do {
      const ssize_t sent = ::send(sender, data.data() + done, data.size() - done, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0 && errno == EAGAIN) throw_bad_file(file, "more data waits in a Unix socket than fits in");
      if (sent < 0) throw_errno("cannot put the data back into a Unix socket");
      done += static_cast<size_t>(sent);
    } while (done < data.size());
  }
}

void shut(const pb::UnixSocket& socket, int fd) {
  if (socket.shut_read()) ::shutdown(fd, SHUT_RD);
  if (socket.shut_write()) ::shutdown(fd, SHUT_WR);
}

void create_pair(RestoreContext& context, const pb::OpenFile& file, const pb::OpenFile* peer) {
  const pb::UnixSocket& socket = file.unix_socket();
  int fds[2];
  {
    const MakerIdentity as_user(context.options.identity);
    if (::socketpair(AF_UNIX, socket.type() | SOCK_CLOEXEC, 0, fds) != 0) throw_errno("cannot make a socket pair");
  }
  UniqueFd here(fds[0]), there(fds[1]);
  refill(file, there.get());
  if (peer) refill(*peer, here.get());
  set_options(socket, here.get());
  shut(socket, here.get());
  if (peer) {
    set_options(peer->unix_socket(), there.get());
    shut(peer->unix_socket(), there.get());
    context.put(*peer, std::move(there));
  }
  context.put(file, std::move(here));
}

// A path in the way may only be the socket of a program that has ended: nobody answers there.
void check_free(const pb::OpenFile& file, const Address& address, const std::string& name) {
  struct stat status {};
  if (name[0] == '/') {
    if (::lstat(name.c_str(), &status) != 0) {
      if (errno == ENOENT) return;
      throw_errno("cannot look at {}", name);
    }
    if (!S_ISSOCK(status.st_mode)) throw_bad_file(file, fmt::format("{} is in the way of a Unix socket", name));
  }
  const UniqueFd probe(::socket(AF_UNIX, file.unix_socket().type() | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) throw_errno("cannot make a Unix socket");
  if (::connect(probe.get(), address.get(), address.length) == 0 || errno != ECONNREFUSED) {
    throw_bad_file(file, fmt::format("Unix socket {} is in use by another process", printable(name)));
  }
}

void bind_socket(const pb::OpenFile& file, const Address& address, int fd) {
  const pb::UnixSocket& socket = file.unix_socket();
  const std::string& name = socket.name();
  check_free(file, address, name);
  if (name[0] == '/') ::unlink(name.c_str());
  ::umask(~socket.mode() & 0777);  // of this thread only, see in_capsule_root()
  if (::bind(fd, address.get(), address.length) != 0) throw_errno("cannot bind a Unix socket to {}", printable(name));
  if (socket.listening() && ::listen(fd, static_cast<int>(socket.backlog())) != 0) {
    throw_errno("cannot listen on Unix socket {}", printable(name));
  }
}

// Datagrams that came to a name are sent there again, by the sockets that bear their senders' names. Who no longer is
// in the capsule has no name now.
void send_again(const RestoreContext& context, const pb::OpenFile& file, const Address& address,
                const std::map<std::string, uint32_t>& by_name) {
  const pb::UnixSocket& socket = file.unix_socket();
  const UniqueFd nameless(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!nameless) throw_errno("cannot make a Unix socket");
  for (int i = 0; i < socket.queue_size(); i++) {
    const auto sender = by_name.find(socket.queue_senders(i));
    const int fd = sender == by_name.end() ? nameless.get() : context.get(sender->second);
    const std::string& data = socket.queue(i);
    if (::sendto(fd, data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL, address.get(), address.length) >= 0)
      continue;
    if (errno == EAGAIN) throw_bad_file(file, "more data waits in a Unix socket than fits in");
    throw_errno("cannot put the data back into Unix socket {}", printable(socket.name()));
  }
}

struct Names {
  // Files by name.
  std::shared_ptr<std::map<std::string, uint32_t>> datagram_sockets =
      std::make_shared<std::map<std::string, uint32_t>>();
  std::vector<std::function<void()>> refills, connections;  // after all names are bound
};

// Names appear in the file system, or are reached there, only when nothing can fail any more.
void create_lone(RestoreContext& context, const pb::OpenFile& file, Names& names) {
  const pb::UnixSocket& socket = file.unix_socket();
  UniqueFd made;
  {
    const MakerIdentity as_user(context.options.identity);
    made.reset(::socket(AF_UNIX, socket.type() | SOCK_CLOEXEC, 0));
    if (!made) throw_errno("cannot make a Unix socket");
  }
  set_options(socket, made.get());
  const FileRestoreOptions& options = context.options;
  const int fd = made.get();
  if (!socket.name().empty()) {
    const Address address(file, socket.name());
    in_capsule_root(options, [&] { check_free(file, address, socket.name()); });
    context.later(
        [&file, &options, address, fd] { in_capsule_root(options, [&] { bind_socket(file, address, fd); }); });
    if (socket.type() == SOCK_DGRAM) names.datagram_sockets->emplace(socket.name(), file.id());
    if (socket.queue_size() > 0) {
      names.refills.push_back([&context, &file, &options, address, known = names.datagram_sockets] {
        in_capsule_root(options, [&] { send_again(context, file, address, *known); });
      });
    }
  }
  if (!socket.peer_name().empty()) {
    const Address address(file, socket.peer_name());
    names.connections.push_back([&options, address, fd, name = socket.peer_name()] {
      in_capsule_root(options, [&] {
        if (::connect(fd, address.get(), address.length) != 0) {
          throw_errno("cannot connect a Unix socket to {} again", printable(name));
        }
      });
    });
  }
  if (socket.type() == SOCK_DGRAM) shut(socket, fd);
  context.put(file, std::move(made));
}

}  // namespace

void create_unix_sockets(RestoreContext& context, ImageFiles files) {
  std::map<uint64_t, const pb::OpenFile*> by_inode;
  for (const pb::OpenFile* file : files) {
    check_values(*file);
    if (!by_inode.emplace(file->unix_socket().ino(), file).second) {
      throw_bad_file(*file, fmt::format("Unix socket {} is in the image twice", file->unix_socket().ino()));
    }
  }
  Names names;
  for (const pb::OpenFile* file : files) {
    const pb::UnixSocket& socket = file->unix_socket();
    if (!socket.paired()) {
      create_lone(context, *file, names);
    } else if (socket.peer_ino() == 0) {
      create_pair(context, *file, nullptr);
    } else {
      const auto peer = by_inode.find(socket.peer_ino());
      if (peer == by_inode.end() || peer->second == file || !peer->second->unix_socket().paired() ||
          peer->second->unix_socket().peer_ino() != socket.ino() ||
          peer->second->unix_socket().type() != socket.type()) {
        throw_bad_file(*file, "the ends of a socket pair do not fit each other");
      }
      if (socket.ino() < socket.peer_ino()) create_pair(context, *file, peer->second);
    }
  }
  for (auto& refill : names.refills) context.later(std::move(refill));
  for (auto& connection : names.connections) context.later(std::move(connection));
}

}  // namespace icp
