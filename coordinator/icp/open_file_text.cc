// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/open_file_text.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

#include "coordinator/icp/format.h"
#include "engine/files/file_table.h"
#include "engine/files/inet_address.h"

namespace icp {

namespace {

std::string access_of(uint32_t flags) {
  std::string text = (flags & O_ACCMODE) == O_RDONLY   ? "read only"
                     : (flags & O_ACCMODE) == O_WRONLY ? "write only"
                                                       : "read and write";
  if ((flags & O_APPEND) != 0) text += ", append";
  if ((flags & O_NONBLOCK) != 0) text += ", nonblocking";
  return text;
}

std::string describe_pipe(const pb::PipeEnd& end) {
  const std::string name = end.fifo_path().empty() ? fmt::format("pipe {}", end.pipe()) : "FIFO " + end.fifo_path();
  const std::string data = end.data().empty() ? "" : fmt::format(", {} in flight", human_bytes(end.data().size()));
  return fmt::format("{}, {} end{}", name, end.write_end() ? "write" : "read", data);
}

std::string describe_socket(const pb::UnixSocket& socket) {
  const char* type = socket.type() == SOCK_STREAM ? "stream" : socket.type() == SOCK_DGRAM ? "datagram" : "seqpacket";
  std::string text = fmt::format("unix {} socket {}", type, socket.ino());
  if (!socket.name().empty())
    text += fmt::format(" at {}{}", socket.name()[0] == '\0' ? "@" : "",
                        socket.name()[0] == '\0' ? socket.name().substr(1) : socket.name());
  if (socket.listening()) return text + ", listening";
  if (socket.peer_ino() != 0) text += fmt::format(", connected to {}", socket.peer_ino());
  size_t waiting = 0;
  for (const std::string& packet : socket.queue()) waiting += packet.size();
  return waiting == 0 ? text : text + fmt::format(", {} in flight", human_bytes(waiting));
}

std::string describe_socket(const pb::TcpSocket& socket) {
  const std::string local = InetAddress::of(socket.local()).text(), remote = InetAddress::of(socket.remote()).text();
  switch (socket.state()) {
    case pb::TcpSocket::LISTENING:
      return fmt::format("TCP socket listening on {}", local);
    case pb::TcpSocket::CONNECTED: {
      const size_t waiting = socket.receive_queue().size() + socket.send_queue().size();
      const std::string data = waiting == 0 ? "" : fmt::format(", {} in flight", human_bytes(waiting));
      return fmt::format("TCP connection {} to {}{}", local, remote, data);
    }
    case pb::TcpSocket::ENDED:
      return fmt::format("TCP connection {}, closed by the other end", local);
    case pb::TcpSocket::RESET:
      return fmt::format("TCP connection {} to {}, reset at a restart", local, remote);
    default:
      return socket.local().port() == 0 ? "TCP socket" : fmt::format("TCP socket bound to {}", local);
  }
}

std::string describe_socket(const pb::UdpSocket& socket) {
  std::string text = "UDP socket";
  if (socket.local().port() != 0) text += " bound to " + InetAddress::of(socket.local()).text();
  return socket.has_remote() ? text + " connected to " + InetAddress::of(socket.remote()).text() : text;
}

std::string describe_timer(const pb::TimerFd& timer) {
  if (timer.remaining_ns() == 0) return "timerfd, not set";
  std::string text = fmt::format("timerfd, due in {}", human_time(timer.remaining_ns()));
  return timer.interval_ns() == 0 ? text : text + fmt::format(", every {}", human_time(timer.interval_ns()));
}

std::string describe_pty(const pb::PtyMaster& master) {
  uint64_t typed = 0;
  for (const pb::PtyInput& line : master.input()) typed += line.text().size();
  return fmt::format("master of /dev/pts/{}, {} x {}, {} bytes to the program, {} from it", master.number(),
                     master.columns(), master.rows(), typed, master.output().size());
}

std::string describe_pty(const pb::PtySlave& slave) {
  if (slave.hung_up()) return "terminal that has been hung up";
  const std::string name = slave.controlling() ? "/dev/tty, " : "";
  if (slave.has_outer())
    return name + fmt::format("standard stream {} of task {}", slave.outer().fd(), slave.outer().rank());
  return name + fmt::format("/dev/pts/{}", slave.number());
}

}  // namespace

std::string kind_of(const pb::OpenFile& file) {
  switch (file.kind_case()) {
    case pb::OpenFile::kRegular:
      return "regular";
    case pb::OpenFile::kDirectory:
      return "directory";
    case pb::OpenFile::kCharDevice:
      return "device";
    case pb::OpenFile::kPipe:
      return "pipe";
    case pb::OpenFile::kEventfd:
      return "eventfd";
    case pb::OpenFile::kEpoll:
      return "epoll";
    case pb::OpenFile::kTimerfd:
      return "timerfd";
    case pb::OpenFile::kSignalfd:
      return "signalfd";
    case pb::OpenFile::kUnixSocket:
      return "unix socket";
    case pb::OpenFile::kTcp:
      return "TCP socket";
    case pb::OpenFile::kUdp:
      return "UDP socket";
    case pb::OpenFile::kObject:
      return "memory object";
    case pb::OpenFile::kOuter:
      return "standard stream";
    case pb::OpenFile::kPidfd:
      return "pidfd";
    case pb::OpenFile::kLink:
      return "symbolic link";
    case pb::OpenFile::kPtyMaster:
    case pb::OpenFile::kPtySlave:
      return "pseudo terminal";
    case pb::OpenFile::kInotify:
      return "inotify";
    case pb::OpenFile::kPosixQueue:
      return "message queue";
    default:
      break;
  }
  return "unknown";
}

std::string describe(const pb::OpenFile& file) {
  switch (file.kind_case()) {
    case pb::OpenFile::kRegular:
      return fmt::format("{}, byte {} of {}, {}", file.identity().path(), file.position(), file.regular().size(),
                         access_of(file.flags()));
    case pb::OpenFile::kDirectory:
      return fmt::format("{}, directory", file.identity().path());
    case pb::OpenFile::kCharDevice:
      return fmt::format("{}, device {}:{}, {}", file.identity().path(), major(file.char_device().rdev()),
                         minor(file.char_device().rdev()), access_of(file.flags()));
    case pb::OpenFile::kPipe:
      return describe_pipe(file.pipe());
    case pb::OpenFile::kEventfd:
      return fmt::format("eventfd, count {}{}", file.eventfd().count(),
                         file.eventfd().semaphore() ? ", semaphore" : "");
    case pb::OpenFile::kEpoll:
      return fmt::format("epoll, {}", counted(static_cast<uint64_t>(file.epoll().items_size()), "descriptor"));
    case pb::OpenFile::kTimerfd:
      return describe_timer(file.timerfd());
    case pb::OpenFile::kSignalfd:
      return fmt::format("signalfd, mask {:016x}", file.signalfd().mask());
    case pb::OpenFile::kUnixSocket:
      return describe_socket(file.unix_socket());
    case pb::OpenFile::kTcp:
      return describe_socket(file.tcp());
    case pb::OpenFile::kUdp:
      return describe_socket(file.udp());
    case pb::OpenFile::kObject:
      return fmt::format("memory object {}, byte {}, {}", file.object().object(), file.position(),
                         access_of(file.flags()));
    case pb::OpenFile::kOuter:
      if (file.outer().fd() == kPmiStream)
        return fmt::format("connection of task {} to MPI's process manager, replaced at a restart",
                           file.outer().rank());
      if (file.outer().fd() == kPmixRelayStream) return "socket of the relay of PMIx or PMI, replaced at a restart";
      if (file.outer().fd() == kLaunchStream)
        return fmt::format("socket of the stand-in for srun {}, replaced at a restart", file.outer().rank());
      return fmt::format("standard stream {} of task {}, replaced at a restart", file.outer().fd(),
                         file.outer().rank());
    case pb::OpenFile::kPidfd:
      return fmt::format("pidfd of process {}", file.pidfd().pid());
    case pb::OpenFile::kLink:
      return fmt::format("{}, symbolic link", file.identity().path());
    case pb::OpenFile::kPtyMaster:
      return describe_pty(file.pty_master());
    case pb::OpenFile::kPtySlave:
      return describe_pty(file.pty_slave());
    case pb::OpenFile::kInotify:
      return fmt::format("inotify, {}",
                         counted(static_cast<uint64_t>(file.inotify().watches_size()), "watch", "watches"));
    case pb::OpenFile::kPosixQueue:
      return fmt::format("message queue /{}, {}", file.posix_queue().name(),
                         counted(static_cast<uint64_t>(file.posix_queue().messages_size()), "message"));
    default:
      break;
  }
  return "of a kind this icp does not know";
}

std::string kind_of(const pb::Mapping& mapping) {
  switch (mapping.kind()) {
    case pb::Mapping::ANONYMOUS:
      return "anonymous";
    case pb::Mapping::FILE_PRIVATE:
      return "private file";
    case pb::Mapping::OBJECT:
      return "shared object";
    case pb::Mapping::OBJECT_PRIVATE:
      return "private object";
    case pb::Mapping::FILE_READONLY_SHARED:
      return "shared read-only file";
    case pb::Mapping::VDSO:
      return "vdso";
    case pb::Mapping::VVAR:
      return "vvar";
    default:
      return "unknown";
  }
}

std::string kind_of(const pb::MemoryObject& object) {
  switch (object.kind()) {
    case pb::MemoryObject::ANON_SHARED:
      return "shared anonymous memory";
    case pb::MemoryObject::MEMFD:
      return "memfd";
    case pb::MemoryObject::SHM_FILE:
      return "POSIX shared memory";
    case pb::MemoryObject::DELETED_FILE:
      return "deleted file";
    case pb::MemoryObject::SYSV:
      return "System V segment";
    case pb::MemoryObject::MAPPED_FILE:
      return "mapped file";
    default:
      return "unknown";
  }
}

std::string state_of(const pb::Process& process) {
  switch (process.state()) {
    case pb::Process::RUNNING:
      return "running";
    case pb::Process::STOPPED:
      return "stopped";
    case pb::Process::ZOMBIE:
      return "zombie";
    default:
      return "unknown";
  }
}

uint64_t mapped_bytes(const pb::Process& process) {
  uint64_t bytes = 0;
  for (const pb::Mapping& mapping : process.memory().mappings())
    if (mapping.end() > mapping.start()) bytes += mapping.end() - mapping.start();
  return bytes;
}

}  // namespace icp
