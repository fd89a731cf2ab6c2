// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/restore/terminal_restore.h"

#include <asm/ioctls.h>
#include <fcntl.h>
#include <sys/syscall.h>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr const char* kControlling = "/dev/tty";

bool same_terminal(const pb::Terminal& a, const pb::Terminal& b) {
  if (a.outer() != b.outer()) return false;
  return a.outer() ? a.rank() == b.rank() && a.fd() == b.fd() : a.number() == b.number();
}

// A descriptor of ours in a process under construction, for as long as this object lives.
class Lent {
 public:
  Lent(TreeBuilder& builder, RemoteProcess& remote, int local) : remote_(remote) {
    remote_.reset_scratch();
    fd_ = static_cast<uint64_t>(remote_.send_fd(builder.agent_socket(), builder.process_socket(), local));
  }
  ~Lent() {
    try {
      remote_.syscall(SYS_close, {fd_});
    } catch (const Error&) {
      // The process is gone, and the descriptor with it.
    }
  }
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  uint64_t fd() const { return fd_; }

 private:
  RemoteProcess& remote_;
  uint64_t fd_ = 0;
};

}  // namespace

TerminalRestore::TerminalRestore(const pb::Capsule& capsule, TreeBuilder& builder, const FileRestore& files,
                                 const std::map<int, std::array<int, 3>>& streams)
    : builder_(builder), files_(files), streams_(streams) {
  for (const pb::Process& process : capsule.processes()) processes_.emplace(process.pid(), &process);
}

int TerminalRestore::fd_of(const pb::Terminal& terminal) const {
  if (!terminal.outer()) return files_.pty_slave(terminal.number());
  const auto task = streams_.find(terminal.rank());
  if (task == streams_.end() || terminal.fd() < 0 || terminal.fd() > 2) return -1;
  return task->second[static_cast<size_t>(terminal.fd())];
}

void TerminalRestore::take(uint32_t pid) {
  const auto found = processes_.find(pid);
  if (found == processes_.end() || !found->second->has_terminal()) return;
  const pb::Terminal& terminal = found->second->terminal();
  const int local = fd_of(terminal);
  if (local < 0 && !terminal.outer())
    throw_error(ErrorKind::kImage, "process {} has pseudo terminal {}, which is not in the image", pid,
                terminal.number());
  if (local < 0) return;
  RemoteProcess& remote = *builder_.seed(pid).remote;
  const Lent lent(builder_, remote, local);
  const int64_t result = remote.syscall(SYS_ioctl, {lent.fd(), TIOCSCTTY, 0});
  // A task's terminal is that of another session already, or the new stream is none: it goes on without.
  if (result == 0)
    taken_[pid] = true;
  else if (!terminal.outer())
    throw_error(ErrorKind::kImage, "process {} cannot get its controlling terminal: {}", pid,
                errno_text(static_cast<int>(-result)));
}

void TerminalRestore::settle() {
  for (const auto& [pid, process] : processes_) {
    if (process->state() == pb::Process::ZOMBIE || taken_.count(process->sid()) == 0) continue;
    if (!process->has_terminal()) leave(*process);
    if (process->has_terminal() && process->sid() == pid && process->terminal().foreground() != 0)
      set_foreground(*process);
  }
}

void TerminalRestore::set_foreground(const pb::Process& leader) {
  RemoteProcess& remote = *builder_.seed(leader.pid()).remote;
  const Lent lent(builder_, remote, fd_of(leader.terminal()));
  const RemoteAddr group = remote.stage_value(static_cast<pid_t>(leader.terminal().foreground()));
  remote.call("ioctl(TIOCSPGRP)", SYS_ioctl, {lent.fd(), TIOCSPGRP, group.value});
}

void TerminalRestore::leave(const pb::Process& process) {
  RemoteProcess& remote = *builder_.seed(process.pid()).remote;
  remote.reset_scratch();
  const int64_t fd = remote.syscall(
      SYS_openat, {static_cast<uint64_t>(AT_FDCWD), remote.stage_string(kControlling).value, O_RDWR | O_NOCTTY, 0});
  if (fd < 0) return;  // forked before its leader took the terminal
  remote.call("ioctl(TIOCNOTTY)", SYS_ioctl, {static_cast<uint64_t>(fd), TIOCNOTTY, 0});
  remote.call("close", SYS_close, {static_cast<uint64_t>(fd)});
}

UniqueFd TerminalRestore::open(const pb::OpenFile& file) {
  pb::Terminal wanted = file.pty_slave().outer();
  if (!file.pty_slave().has_outer()) wanted.set_number(file.pty_slave().number());
  for (const auto& [pid, process] : processes_) {
    if (process->state() == pb::Process::ZOMBIE || !process->has_terminal() || taken_.count(process->sid()) == 0)
      continue;
    if (!same_terminal(process->terminal(), wanted)) continue;
    RemoteProcess& remote = *builder_.seed(pid).remote;
    remote.reset_scratch();
    const uint64_t flags = (file.flags() & (O_ACCMODE | O_NONBLOCK | O_APPEND)) | O_NOCTTY | O_CLOEXEC;
    const int64_t fd = remote.syscall(
        SYS_openat, {static_cast<uint64_t>(AT_FDCWD), remote.stage_string(kControlling).value, flags, 0});
    if (fd >= 0) return remote.take_away_fd(fd);
  }
  return {};
}

}  // namespace icp
