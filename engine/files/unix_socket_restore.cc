// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <sched.h>
#include <spdlog/spdlog.h>
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
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/file_systems.h"
#include "engine/base/own_network.h"
#include "engine/files/made_inside.h"
#include "engine/files/socket_option.h"
#include "engine/files/unix_maker.h"
#include "engine/files/unix_refill.h"
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

// Runs `work` as the user in a thread whose root directory is the capsule's, and whose working directory and umask are
// its own, so that names can be used as they are: binding to a detour would show in getsockname().
void in_capsule_root(const FileRestoreOptions& options, const std::function<void()>& work) {
  std::exception_ptr error;
  std::thread worker([&] {
    try {
      const bool there = ::geteuid() != 0 && is_own_root(options.root_fd);
      if (::unshare(CLONE_FS) != 0 || (!there && (::fchdir(options.root_fd) != 0 || ::chroot(".") != 0))) {
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

using Visitor = std::function<void(int fd)>;

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
  if (!socket.name().empty() && socket.name()[0] != '\0' && socket.name()[0] != '/' &&
      (socket.place().size() <= socket.name().size() || socket.place()[0] != '/' ||
       !socket.place().ends_with("/" + socket.name()))) {
    throw_bad_file(file, "a Unix socket with a relative name is nowhere");
  }
  for (const pb::UnixControl& control : socket.control()) {
    if (static_cast<int64_t>(control.entry()) >= socket.queue_size() || control.files_size() > kMostUnixFiles) {
      throw_bad_file(file, "descriptors are on their way with no message of a Unix socket");
    }
  }
  if (socket.pending_of() != 0 && (socket.paired() || socket.listening() || socket.type() == SOCK_DGRAM)) {
    throw_bad_file(file, "a Unix socket that cannot wait to be accepted does");
  }
  const bool addressed = socket.type() == SOCK_DGRAM && !socket.name().empty();
  if (!socket.paired() && !addressed && socket.queue_size() > 0) {
    throw_bad_file(file, "data waits in an unconnected Unix socket");
  }
  if (socket.queue_senders_size() != (socket.paired() ? 0 : socket.queue_size())) {
    throw_bad_file(file, "the datagrams in a Unix socket have not a sender each");
  }
  if (socket.paired() && (socket.listening() || !socket.peer_name().empty())) {
    throw_bad_file(file, "a Unix socket is both connected and listening");
  }
  if (socket.listening() && (socket.type() == SOCK_DGRAM || socket.name().empty())) {
    throw_bad_file(file, "a Unix socket that cannot listen does");
  }
  if (!socket.peer_name().empty() && socket.type() != SOCK_DGRAM) {
    throw_bad_file(file, "a Unix socket is connected to a name");
  }
}

void set_options(const pb::OpenFile& file, int fd) {
  const pb::UnixSocket& socket = file.unix_socket();
  set_unix_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, socket.send_buffer());
  set_unix_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, socket.receive_buffer());
  restore_socket_options(file, socket.options(), fd);
  const int on = 1;
  if (socket.passcred() && ::setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0) {
    throw_errno("cannot set SO_PASSCRED of a Unix socket");
  }
}

void shut(const pb::UnixSocket& socket, int fd) {
  if (socket.shut_read()) ::shutdown(fd, SHUT_RD);
  if (socket.shut_write()) ::shutdown(fd, SHUT_WR);
}

// A path in the way may only be the socket of a program that has ended: nobody answers there.
// `dry`: it is the running job's.
void check_free(const pb::OpenFile& file, const UnixAddress& address, const std::string& name, bool dry) {
  struct stat status {};
  if (name[0] != '\0') {
    if (::lstat(name.c_str(), &status) != 0) {
      if (errno == ENOENT) return;
      throw_errno("cannot look at {}", name);
    }
    if (!S_ISSOCK(status.st_mode)) throw_bad_file(file, fmt::format("{} is in the way of a Unix socket", name));
  }
  if (dry && (name[0] != '\0' || !in_own_network())) return;
  const UniqueFd probe(::socket(AF_UNIX, file.unix_socket().type() | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) throw_errno("cannot make a Unix socket");
  if (::connect(probe.get(), address.get(), address.length) == 0 || errno != ECONNREFUSED) {
    throw_bad_file(file, fmt::format("Unix socket {} is in use by another process", printable(name)));
  }
}

// Makes what is missing of the directories that lead to `path`, and says which those were.
std::vector<std::string> make_directories(const std::string& path) {
  std::vector<std::string> made;
  for (size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    const std::string directory = path.substr(0, slash);
    const UniqueFd parent = open_saved(-1, directory_of(directory), O_PATH | O_DIRECTORY);
    if (parent && ::mkdirat(parent.get(), last_name_of(directory).c_str(), 0700) == 0) made.push_back(directory);
  }
  return made;
}

// A socket whose path is gone has the name all the same. Where something lives by that name now it cannot have it.
bool is_name_free(const pb::OpenFile& file, const UnixAddress& address, const std::string& name) {
  try {
    check_free(file, address, name, false);
    return true;
  } catch (const Error& error) {
    spdlog::warn("{}: a socket that had this name does without it", error.what());
    return false;
  }
}

// `visitors`: those who connect by a name that only now leads here, in this thread.
void bind_socket(const pb::OpenFile& file, const UnixAddress& address, int fd,
                 const std::map<uint32_t, Visitor>& visitors) {
  const pb::UnixSocket& socket = file.unix_socket();
  const std::string& name = socket.name();
  const std::string& place = socket.place().empty() ? name : socket.place();
  const bool is_path = name[0] != '\0';
  const std::vector<std::string> directories = is_path ? make_directories(place) : std::vector<std::string>();
  if (is_path && !open_saved(-1, directory_of(place), O_PATH | O_DIRECTORY))
    throw_errno("cannot bind a Unix socket to {}", place);
  if (is_path && name[0] != '/') {
    const std::string base = place.substr(0, place.size() - name.size());
    if (::chdir(base.c_str()) != 0) throw_errno("cannot enter {}", base);
  }
  const bool without_name = socket.unlinked() && !is_name_free(file, address, name);
  if (without_name) {
    const sa_family_t family = AF_UNIX;  // alone: any abstract name, so that it can listen
    if (socket.listening() || !visitors.empty()) ::bind(fd, reinterpret_cast<const sockaddr*>(&family), sizeof family);
  } else {
    if (!socket.unlinked()) check_free(file, address, name, false);
    if (is_path) ::unlink(name.c_str());
    const unsigned mode = socket.unlinked() ? 0600 : socket.mode();
    if (is_path) ::umask(~mode & 0777);  // of this thread only, see in_capsule_root()
    if (::bind(fd, address.get(), address.length) != 0) throw_errno("cannot bind a Unix socket to {}", printable(name));
  }
  if (socket.listening() && ::listen(fd, static_cast<int>(socket.backlog())) != 0) {
    throw_errno("cannot listen on Unix socket {}", printable(name));
  }
  for (const auto& [order, visitor] : visitors) visitor(fd);
  if (socket.unlinked() && is_path && !without_name) ::unlink(name.c_str());
  if (socket.unlinked())
    for (auto directory = directories.rbegin(); directory != directories.rend(); ++directory)
      ::rmdir(directory->c_str());
}

// Datagrams that came to a name are sent there again, by the sockets that bear their senders' names. Who no longer is
// in the capsule has no name now.
void send_again(const RestoreContext& context, const pb::OpenFile& file, const UnixAddress& address,
                const std::map<std::string, uint32_t>& by_name) {
  const pb::UnixSocket& socket = file.unix_socket();
  const UniqueFd nameless(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!nameless) throw_errno("cannot make a Unix socket");
  for (int i = 0; i < socket.queue_size(); i++) {
    const auto sender = by_name.find(socket.queue_senders(i));
    const int fd = sender == by_name.end() ? nameless.get() : context.get(sender->second);
    if (send_entry(fd, socket.queue(i), 0, files_of_entry(context, file, i), &address) >= 0) continue;
    if (errno == EAGAIN) throw_bad_file(file, "more data waits in a Unix socket than fits in");
    throw_errno("cannot put the data back into Unix socket {}", printable(socket.name()));
  }
}

// What is done when all sockets are made: names appear in the file system, or are reached there, only when nothing can
// fail any more.
struct Names {
  // Files by name.
  std::shared_ptr<std::map<std::string, uint32_t>> datagram_sockets =
      std::make_shared<std::map<std::string, uint32_t>>();
  std::map<std::string, int> abstract;        // how many sockets have an abstract name: a listener and what it accepted
  std::map<std::string, UniqueFd> listeners;  // of abstract names, where no socket of the image listens any more
  std::map<std::string, uint32_t> listening;  // files, by abstract name, that listen already
  std::map<uint64_t, const pb::OpenFile*> by_inode;
  // In this order.
  std::vector<std::function<void()>> unlinked_binds, binds, refills, connections;
  std::map<std::pair<uint64_t, uint32_t>, std::function<void()>> pending;  // by listener and place in its queue
  // Who connects while a socket has its name, by that one's inode.
  std::shared_ptr<std::map<uint64_t, std::map<uint32_t, Visitor>>> visitors =
      std::make_shared<std::map<uint64_t, std::map<uint32_t, Visitor>>>();
};

void bind_later(const RestoreContext& context, const pb::OpenFile& file, int fd, Names& names) {
  const FileRestoreOptions& options = context.options;
  const std::string& name = file.unix_socket().name();
  const UnixAddress address(file, name);
  if (!file.unix_socket().unlinked() && (name[0] == '\0' || name[0] == '/'))
    in_capsule_root(options, [&] { check_free(file, address, name, options.dry); });
  auto& list = file.unix_socket().unlinked() ? names.unlinked_binds : names.binds;
  list.emplace_back([&file, &options, address, fd, visitors = names.visitors] {
    in_capsule_root(options, [&] { bind_socket(file, address, fd, (*visitors)[file.unix_socket().ino()]); });
  });
}

// A full queue does not hold us up. False with errno.
bool connect_without_wait(int fd, const sockaddr* address, socklen_t length) {
  const int flags = ::fcntl(fd, F_GETFL);
  ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  const bool connected = ::connect(fd, address, length) == 0;
  const int error = errno;
  ::fcntl(fd, F_SETFL, flags);
  errno = error;
  return connected;
}

void connect_now(const UnixAddress& address, int fd, const std::string& name) {
  if (!connect_without_wait(fd, address.get(), address.length))
    throw_errno("cannot connect a Unix socket to {} again", printable(name));
}

// By the name that the other one has at this moment.
void connect_to(int fd, int other) {
  sockaddr_un name{};
  socklen_t length = sizeof name;
  if (::getsockname(other, reinterpret_cast<sockaddr*>(&name), &length) != 0)
    throw_errno("cannot read the name of a Unix socket");
  if (!connect_without_wait(fd, reinterpret_cast<const sockaddr*>(&name), length))
    throw_errno("cannot connect a Unix socket again");
}

// Whether it is reached only while it is being bound: by a name that goes again, or that depends on the directory.
bool needs_visit(const pb::UnixSocket& socket) {
  return !socket.name().empty() && socket.name()[0] != '\0' && (socket.unlinked() || socket.name()[0] != '/');
}

// A listener of an abstract name: the image's, else one for the time of the restart.
int listener_of(const RestoreContext& context, const pb::OpenFile& file, const UnixAddress& address, Names& names) {
  const pb::UnixSocket& socket = file.unix_socket();
  const auto known = names.listening.find(socket.name());
  if (known != names.listening.end()) return context.get(known->second);
  UniqueFd& made = names.listeners[socket.name()];
  if (made) return made.get();
  const MakerIdentity as_user(context.options.identity);
  check_free(file, address, socket.name(), context.options.dry);
  made.reset(::socket(AF_UNIX, socket.type() | SOCK_CLOEXEC, 0));
  if (!made || ::bind(made.get(), address.get(), address.length) != 0 || ::listen(made.get(), 1) != 0) {
    throw_errno("cannot listen on Unix socket {}", printable(socket.name()));
  }
  return made.get();
}

// An accepted connection has its listener's abstract name, which only accept(2) gives twice.
std::pair<UniqueFd, UniqueFd> accepted_pair(const RestoreContext& context, const pb::OpenFile& file, Names& names) {
  const pb::UnixSocket& socket = file.unix_socket();
  const UnixAddress address(file, socket.name());
  const int listener = listener_of(context, file, address, names);
  RemoteProcess* const maker = process_of(context, socket.peer_pid());
  UniqueFd client = maker != nullptr ? client_made_by(*maker, address, socket.type()) : UniqueFd();
  if (maker == nullptr) {
    const MakerIdentity as_user(context.options.identity);
    client.reset(::socket(AF_UNIX, socket.type() | SOCK_CLOEXEC, 0));
    if (!client) throw_errno("cannot make a Unix socket");
    connect_now(address, client.get(), socket.name());
  }
  const pid_t by = maker != nullptr ? maker->pid() : ::getpid();
  for (;;) {
    UniqueFd accepted(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!accepted) throw_errno("cannot accept a connection to {}", printable(socket.name()));
    ucred who{};
    socklen_t length = sizeof who;
    // Somebody else's that came in between is closed: that program finds the job not there yet.
    if (::getsockopt(accepted.get(), SOL_SOCKET, SO_PEERCRED, &who, &length) == 0 && who.pid == by) {
      return {std::move(accepted), std::move(client)};
    }
  }
}

std::pair<UniqueFd, UniqueFd> make_ends(const RestoreContext& context, const pb::OpenFile& file,
                                        const pb::OpenFile* peer, Names& names) {
  const auto shared_name = [&](const pb::OpenFile& end) {
    const std::string& name = end.unix_socket().name();
    return end.unix_socket().type() != SOCK_DGRAM && name.starts_with('\0') && names.abstract[name] > 1;
  };
  if (shared_name(file)) return accepted_pair(context, file, names);
  if (peer != nullptr && shared_name(*peer)) {
    auto [there, here] = accepted_pair(context, *peer, names);
    return {std::move(here), std::move(there)};
  }
  if (auto ends = pair_made_by(context, maker_of(file, peer), file.unix_socket().type())) return std::move(*ends);
  int fds[2];
  const MakerIdentity as_user(context.options.identity);
  if (::socketpair(AF_UNIX, file.unix_socket().type() | SOCK_CLOEXEC, 0, fds) != 0) {
    throw_errno("cannot make a socket pair");
  }
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

bool has_name(int fd) {
  sockaddr_un address{};
  socklen_t length = sizeof address;
  return ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0 &&
         length > offsetof(sockaddr_un, sun_path);
}

void create_pair(RestoreContext& context, const pb::OpenFile& file, const pb::OpenFile* peer, Names& names) {
  auto [here, there] = make_ends(context, file, peer, names);
  const int near = here.get(), far = there.get();
  std::shared_ptr<UniqueFd> kept;  // an end that nobody has, as long as it is to send something
  if (peer != nullptr) {
    context.put(*peer, std::move(there));
  } else {
    kept = std::make_shared<UniqueFd>(std::move(there));
  }
  context.put(file, std::move(here));
  auto fill = [&context, &file, peer, near, far, kept] {
    refill(context, file, {near, far, peer});
    if (peer) refill(context, *peer, {far, near, &file});
    set_options(file, near);
    shut(file.unix_socket(), near);
    if (peer) {
      set_options(*peer, far);
      shut(peer->unix_socket(), far);
    }
    if (kept) kept->reset();
  };
  const auto either = [&](const auto& question) {
    return question(file.unix_socket()) || (peer != nullptr && question(peer->unix_socket()));
  };
  if (either(carries_credentials)) {
    context.deliveries.emplace_back(std::move(fill));
  } else if (either(carries_files)) {
    context.unix_refills.emplace_back(std::move(fill));
  } else {
    fill();
  }
  if (!file.unix_socket().name().empty() && !has_name(near)) bind_later(context, file, near, names);
  if (peer && !peer->unix_socket().name().empty() && !has_name(far)) bind_later(context, *peer, far, names);
}

// A listener of an abstract name that connections have too listens at once: they are made through it.
bool listens_now(RestoreContext& context, const pb::OpenFile& file, int fd, Names& names) {
  const pb::UnixSocket& socket = file.unix_socket();
  if (!socket.listening() || !socket.name().starts_with('\0') || names.abstract[socket.name()] < 2) return false;
  const UnixAddress address(file, socket.name());
  const MakerIdentity as_user(context.options.identity);
  check_free(file, address, socket.name(), context.options.dry);
  bind_socket(file, address, fd, {});
  names.listening.emplace(socket.name(), file.id());
  return true;
}

void create_lone(RestoreContext& context, const pb::OpenFile& file, Names& names) {
  const pb::UnixSocket& socket = file.unix_socket();
  UniqueFd made;
  {
    const MakerIdentity as_user(context.options.identity);
    made.reset(::socket(AF_UNIX, socket.type() | SOCK_CLOEXEC, 0));
    if (!made) throw_errno("cannot make a Unix socket");
  }
  set_options(file, made.get());
  const FileRestoreOptions& options = context.options;
  const int fd = made.get();
  context.put(file, std::move(made));
  if (!socket.name().empty() && !listens_now(context, file, fd, names)) {
    const UnixAddress address(file, socket.name());
    bind_later(context, file, fd, names);
    if (socket.type() == SOCK_DGRAM) names.datagram_sockets->emplace(socket.name(), file.id());
    if (socket.queue_size() > 0) {
      names.refills.emplace_back([&context, &file, &options, address, known = names.datagram_sockets] {
        in_capsule_root(options, [&] { send_again(context, file, address, *known); });
      });
    }
  }
  const auto peer = names.by_inode.find(socket.peer_ino());
  if (!socket.peer_name().empty() && peer != names.by_inode.end() && needs_visit(peer->second->unix_socket())) {
    auto& visitors = (*names.visitors)[socket.peer_ino()];
    visitors.emplace(visitors.size(), [fd](int to) { connect_to(fd, to); });
  } else if (!socket.peer_name().empty()) {
    const UnixAddress address(file, socket.peer_name());
    names.connections.emplace_back([&options, address, fd, name = socket.peer_name()] {
      in_capsule_root(options, [&] { connect_now(address, fd, name); });
    });
  }
  if (socket.pending_of() != 0) {
    const auto listener = names.by_inode.find(socket.pending_of());
    if (listener == names.by_inode.end() || !listener->second->unix_socket().listening()) {
      throw_bad_file(file, "a Unix socket waits to be accepted by none that listens");
    }
    const std::string& name = listener->second->unix_socket().name();
    if (needs_visit(listener->second->unix_socket())) {
      (*names.visitors)[socket.pending_of()].emplace(socket.backlog(), [fd](int to) { connect_to(fd, to); });
      return;
    }
    names.pending[{socket.pending_of(), socket.backlog()}] = [&options, address = UnixAddress(*listener->second, name),
                                                              fd, name] {
      in_capsule_root(options, [&] { connect_now(address, fd, name); });
    };
  }
  if (socket.type() == SOCK_DGRAM) shut(socket, fd);
}

}  // namespace

void create_unix_sockets(RestoreContext& context, ImageFiles files) {
  Names names;
  for (const pb::OpenFile* file : files) {
    check_values(*file);
    if (!names.by_inode.emplace(file->unix_socket().ino(), file).second) {
      throw_bad_file(*file, fmt::format("Unix socket {} is in the image twice", file->unix_socket().ino()));
    }
    // They are taken by the running job in a rehearsal without a network of its own.
    const bool can_have = !context.options.dry || in_own_network();
    if (can_have && file->unix_socket().name().starts_with('\0')) names.abstract[file->unix_socket().name()]++;
  }
  for (const pb::OpenFile* file : files)
    if (!file->unix_socket().paired()) create_lone(context, *file, names);
  for (const pb::OpenFile* file : files) {
    const pb::UnixSocket& socket = file->unix_socket();
    if (!socket.paired()) continue;
    if (socket.peer_ino() == 0) {
      create_pair(context, *file, nullptr, names);
      continue;
    }
    const auto peer = names.by_inode.find(socket.peer_ino());
    if (peer == names.by_inode.end() || peer->second == file || !peer->second->unix_socket().paired() ||
        peer->second->unix_socket().peer_ino() != socket.ino() || peer->second->unix_socket().type() != socket.type()) {
      throw_bad_file(*file, "the ends of a socket pair do not fit each other");
    }
    if (socket.ino() < socket.peer_ino()) create_pair(context, *file, peer->second, names);
  }
  for (auto* list : {&names.unlinked_binds, &names.binds, &names.refills, &names.connections})
    for (auto& action : *list) context.later(std::move(action));
  for (auto& [place, action] : names.pending) context.later(std::move(action));
}

}  // namespace icp
