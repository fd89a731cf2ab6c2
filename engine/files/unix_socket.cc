// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/unix_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/files/socket_option.h"
#include "engine/files/unix_diag.h"
#include "engine/files/unix_queue.h"

namespace icp {
namespace {

int unix_option(int fd, int name) { return socket_option(fd, SOL_SOCKET, name); }

constexpr size_t kWorthDump = 16;  // sockets: the kernel looks through all of them for each that it is asked about

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
    if (descriptions.size() > kWorthDump) kernel.dump();
    for (Description* description : descriptions) {
      const auto ino = static_cast<uint32_t>(description->stat.st_ino);
      sockets_.push_back({description, kernel.query(ino)});
      if (sockets_.back().diag) known_.emplace(ino, *sockets_.back().diag);
      const auto& diag = sockets_.back().diag;
      if (diag && diag->has_peer && diag->peer_ino != 0 && !known_.count(diag->peer_ino)) {
        if (auto peer = kernel.query(diag->peer_ino)) peers_.emplace(diag->peer_ino, *peer);
      }
    }
    for (const auto& [ino, diag] : known_) {
      if (diag.listening) listening_.insert(diag.name);
      for (size_t place = 0; place < diag.pending.size(); ++place)
        waiting_.try_emplace(diag.pending[place], &diag, place);
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
  // A listening socket of that name.
  bool listens(const std::string& name) const { return listening_.count(name) != 0; }
  // The listener that a connection waits for, and its place in the queue there; null when that is not known here.
  const UnixDiag* waits_for(uint32_t ino, size_t& place) const {
    const auto at = waiting_.find(ino);
    if (at == waiting_.end()) return nullptr;
    place = at->second.second;
    return at->second.first;
  }
  // Both ends are in the capsule and connected to each other, or the other one has closed.
  bool paired(const UnixDiag& diag) const {
    if (!diag.has_peer) return false;
    size_t place = 0;
    if (diag.peer_ino == 0) return (diag.type == SOCK_DGRAM || diag.shutdown == 3) && !waits_for(diag.ino, place);
    const UnixDiag* peer = inside(diag.peer_ino);
    return peer && peer->has_peer && peer->peer_ino == diag.ino && peer->ino != diag.ino;
  }

 private:
  std::vector<Socket> sockets_;
  std::map<uint32_t, UnixDiag> known_, peers_;
  std::set<std::string> listening_;                                 // names
  std::map<uint32_t, std::pair<const UnixDiag*, size_t>> waiting_;  // for which listener, and where in its queue
};

// Where the file is that a socket is bound to; nothing when no name leads there any more. A relative name is relative
// to what was the working directory then, which most likely is one still.
std::optional<std::string> place_of(FileScan& scan, const Description& socket, const UnixDiag& diag,
                                    struct stat& file) {
  const auto leads_there = [&](size_t process, const std::string& path) {
    return scan.stat_path(process, path, file) == 0 && S_ISSOCK(file.st_mode) &&
           (diag.path_ino == 0 || static_cast<uint32_t>(file.st_ino) == diag.path_ino);
  };
  for (const FdUse& use : socket.uses) {
    if (diag.name[0] == '/') return leads_there(use.process, diag.name) ? std::optional(diag.name) : std::nullopt;
    try {
      const std::string path = read_proc_link(scan.processes()[use.process].pid, "cwd") + "/" + diag.name;
      if (leads_there(use.process, path)) return path;
    } catch (const Error&) {  // has ended
    }
  }
  return {};
}

// Descriptors of the listener's connections may come in any number; they and who waits for them are one thing.
void check_pending(FileScan& scan, const SocketSet& all, Description& socket, const UnixDiag& diag) {
  const auto refuse = [&](const char* what) {
    scan.refuse(socket,
                fmt::format("connections to Unix socket {} waiting to be accepted, {}", printable(diag.name), what),
                "try again in a moment", true);
  };
  if (diag.queued > diag.pending.size()) return refuse("by nobody");
  for (const uint32_t ino : diag.pending) {
    const UnixDiag* client = all.inside(ino);
    if (client == nullptr) return refuse("from outside of the job");
    if (client->outgoing > 0) return refuse("with data in them");
    if (client->shutdown != 0) return refuse("and closed already");
  }
}

void check_datagrams(FileScan& scan, const SocketSet& all, Description& socket, const UnixDiag& diag) {
  const std::string name = all.name_of(diag.peer_ino);
  struct stat file {};
  if (all.inside(diag.peer_ino) != nullptr && !name.empty()) return;  // by whatever name, or none any more
  if (name.empty()) {
    scan.refuse(socket, "Unix datagram socket connected to a process outside of the job",
                "close it before a checkpoint");
  } else if (name[0] != '\0' && (name[0] != '/' || scan.stat_path(socket.uses.front().process, name, file) != 0 ||
                                 !S_ISSOCK(file.st_mode))) {
    scan.refuse(socket, fmt::format("Unix datagram socket connected to {}, whose path is gone", printable(name)),
                "close it before a checkpoint, or keep the path");
  }
}

void check_unpaired(FileScan& scan, const SocketSet& all, Description& socket, const UnixDiag& diag) {
  size_t place = 0;
  if (diag.listening) {
    if (diag.name.empty()) {
      scan.refuse(socket, "listening Unix socket without a name", "close it before a checkpoint");
    } else {
      check_pending(scan, all, socket, diag);
    }
  } else if (diag.type == SOCK_DGRAM) {
    if (diag.has_peer) check_datagrams(scan, all, socket, diag);
  } else if (diag.has_peer && diag.peer_ino == 0) {
    if (!all.waits_for(diag.ino, place)) {
      scan.refuse(socket, "Unix socket connection to the outside of the job that is not accepted yet",
                  "try again in a moment", true);
    }
  } else if (diag.has_peer) {
    scan.refuse(socket, fmt::format("Unix socket connected to {}", printable(all.name_of(diag.peer_ino))),
                "close the connection before a checkpoint");
  }
}

void check_socket(FileScan& scan, const SocketSet& all, const SocketSet::Socket& socket) {
  if (!socket.diag) {
    if (scan.checking() && scan.take(*socket.description) < 0) return;  // closed meanwhile
    scan.refuse(*socket.description, "Unix socket of another network namespace", "close it before a checkpoint");
    return;
  }
  pollfd state{scan.take(*socket.description), POLLPRI, 0};
  if (state.fd >= 0 && ::poll(&state, 1, 0) > 0 && (state.revents & POLLPRI) != 0) {
    scan.refuse(*socket.description, "urgent data (MSG_OOB) in a Unix socket", "try again in a moment", true);
    return;
  }
  if (!all.paired(*socket.diag)) check_unpaired(scan, all, *socket.description, *socket.diag);
  check_socket_options(scan, *socket.description);
}

// Who accepts a connection has the listener's name in it, and not the file.
void capture_name(FileScan& scan, const SocketSet& all, const SocketSet::Socket& socket, bool paired,
                  pb::UnixSocket& message) {
  const UnixDiag& diag = *socket.diag;
  message.set_name(diag.name);
  if (diag.name.empty() || diag.name[0] == '\0') return;
  struct stat file {};
  const auto place = place_of(scan, *socket.description, diag, file);
  message.set_unlinked(!place || (paired && all.listens(diag.name)));
  if (place) message.set_mode(file.st_mode & 0777);
  if (diag.name[0] == '/') return;
  const pid_t owner = scan.processes()[socket.description->uses.front().process].pid;
  message.set_place(place ? *place : read_proc_link(owner, "cwd") + "/" + diag.name);
}

void capture_queue(FileScan& scan, int fd, bool senders, pb::UnixSocket& message) {
  for (QueuedMessage& waiting : peek_socket(fd)) {
    message.add_queue(std::move(waiting.data));
    if (senders) message.add_queue_senders(std::move(waiting.sender));
    if (waiting.files.empty() && !waiting.credentials) continue;
    pb::UnixControl& control = *message.add_control();
    control.set_entry(static_cast<uint32_t>(message.queue_size() - 1));
    for (const UniqueFd& file : waiting.files) {
      const Description* description = scan.find_open(file.get());
      if (description == nullptr) throw_error(ErrorKind::kBusy, "a descriptor came into a Unix socket just now");
      control.add_files(description->id);
    }
    if (!waiting.credentials) continue;
    control.set_credentials(true);
    control.set_pid(static_cast<uint32_t>(scan.vpid(waiting.credentials->pid).value_or(0)));
    control.set_uid(waiting.credentials->uid);
    control.set_gid(waiting.credentials->gid);
  }
}

void capture_socket(FileScan& scan, const SocketSet& all, const SocketSet::Socket& socket) {
  const UnixDiag& diag = *socket.diag;
  const int fd = scan.take(*socket.description);
  pb::UnixSocket& message = *socket.description->message->mutable_unix_socket();
  message.set_type(diag.type);
  message.set_ino(diag.ino);
  message.set_send_buffer(static_cast<uint32_t>(unix_option(fd, SO_SNDBUF)));
  message.set_receive_buffer(static_cast<uint32_t>(unix_option(fd, SO_RCVBUF)));
  message.set_passcred(unix_option(fd, SO_PASSCRED) != 0);
  capture_socket_options(fd, true, *message.mutable_options());
  message.set_shut_read((diag.shutdown & 1) != 0);
  message.set_shut_write((diag.shutdown & 2) != 0);
  const bool paired = all.paired(diag);
  capture_name(scan, all, socket, paired, message);
  if (paired) {
    ucred maker{};
    socklen_t length = sizeof maker;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &maker, &length) == 0 && maker.pid > 0)
      message.set_peer_pid(static_cast<uint32_t>(scan.vpid(maker.pid).value_or(0)));
    message.set_paired(true);
    message.set_peer_ino(diag.peer_ino);
    capture_queue(scan, fd, false, message);
    return;
  }
  size_t place = 0;
  if (const UnixDiag* listener = diag.listening ? nullptr : all.waits_for(diag.ino, place)) {
    message.set_pending_of(listener->ino);
    message.set_backlog(static_cast<uint32_t>(place));
    return;
  }
  message.set_listening(diag.listening);
  message.set_backlog(diag.backlog);
  if (diag.has_peer) {
    message.set_peer_name(all.name_of(diag.peer_ino));
    if (all.inside(diag.peer_ino) != nullptr) message.set_peer_ino(diag.peer_ino);
  }
  if (diag.type == SOCK_DGRAM && !diag.name.empty()) capture_queue(scan, fd, true, message);
}

// Into a stream that is full no more is to go after a restart either. Few are: it takes some time to find out how.
void keep_full(const SocketSet& all) {
  std::map<uint32_t, size_t> rooms;  // by the number of the other end, in which it waits: bytes of the full send buffer
  for (const auto& [description, diag] : all.sockets()) {
    const pb::UnixSocket& message = description->message->unix_socket();
    if (message.type() == SOCK_STREAM && message.paired() && diag->outgoing >= message.send_buffer())
      rooms.emplace(message.peer_ino(), message.send_buffer());
  }
  for (const auto& [description, diag] : all.sockets()) {
    pb::UnixSocket& message = *description->message->mutable_unix_socket();
    const auto room = rooms.find(diag->ino);
    if (room == rooms.end() || message.control_size() > 0 || message.queue_size() != 1) continue;
    const std::vector<std::string> parts = cut_to_fill(message.queue(0), room->second);
    message.clear_queue();
    for (const std::string& part : parts) message.add_queue(part);
  }
}

class UnixSocketKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kUnixSocket; }

  bool recognises(FileScan& scan, Description& description) const override {
    if (!S_ISSOCK(description.stat.st_mode) || (description.info.flags & O_PATH)) return false;
    const int fd = scan.take(description);
    return fd >= 0 && unix_option(fd, SO_DOMAIN) == AF_UNIX;
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
    keep_full(all);
  }

  void create(RestoreContext& context, ImageFiles files) const override { create_unix_sockets(context, files); }

  void connect(RestoreContext& context, ImageFiles) const override {
    for (const auto& refill : std::exchange(context.unix_refills, {})) refill();
  }
};

}  // namespace

const FileKind& unix_socket_kind() {
  static const UnixSocketKind kind;
  return kind;
}

}  // namespace icp
