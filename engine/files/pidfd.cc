// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/pidfd.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <charconv>
#include <optional>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr pid_t kEnded = -1;  // in fdinfo: the process has been waited for

// The agent's view.
std::optional<pid_t> pid_of(const Description& description) {
  const auto text = description.info.field("Pid");
  pid_t pid = 0;
  if (!text || std::from_chars(text->data(), text->data() + text->size(), pid).ec != std::errc()) return {};
  return pid;
}

// A child of the process that never runs, for a pidfd of one that has ended: nothing can be learnt of that any more, so
// one is like another. Its number is free again before any thread needs it.
class BriefChild {
 public:
  explicit BriefChild(RemoteProcess& remote)
      : remote_(remote),
        number_(static_cast<uint64_t>(remote.call("cannot start a process", SYS_clone, {CLONE_VM, 0, 0, 0, 0}))),
        pid_(remote.last_child()),
        thread_(Tracee::adopt(pid_)) {}
  uint64_t number() const { return number_; }
  void end() {
    ::kill(pid_, SIGKILL);
    thread_.forget_ended();
    remote_.call("cannot wait for a process", SYS_wait4, {number_, 0, __WALL, 0});
  }

 private:
  RemoteProcess& remote_;
  uint64_t number_;  // in the capsule
  pid_t pid_;        // the agent's view
  Tracee thread_;
};

class PidfdKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kPidfd; }

  bool recognises(FileScan&, Description& description) const override {
    return description.target == "anon_inode:[pidfd]" || description.target.starts_with("pidfd:");
  }

  void check(FileScan& scan, Descriptions descriptions) const override {
    for (Description* description : descriptions) {
      const auto pid = pid_of(*description);
      if (pid == kEnded) continue;
      if (!pid || *pid <= 0) {
        scan.refuse(*description, "pidfd of a process that is not part of the job", "close it");
      } else if (!scan.vpid(*pid)) {
        scan.refuse(*description, fmt::format("pidfd of process {}, which is not part of the job", *pid), "close it");
      }
    }
  }

  void capture(FileScan& scan, const ObjectResolver&, Descriptions descriptions) const override {
    for (Description* description : descriptions) {
      const pid_t seen = pid_of(*description).value_or(0);
      description->message->mutable_pidfd()->set_ended(seen == kEnded);
      const pid_t pid = scan.vpid(seen).value_or(0);
      description->message->mutable_pidfd()->set_pid(static_cast<uint32_t>(pid));
    }
  }

  void create(RestoreContext& context, ImageFiles files) const override {
    for (const pb::OpenFile* file : files) context.pidfds.insert(file->id());
  }

  // Processes that shared the description get one each: it has no state but its flags.
  void finish(FinishContext& context, const pb::FileDescriptor& descriptor, const pb::OpenFile& file) const override {
    RemoteProcess& remote = context.remote;
    const uint64_t flags = file.flags() & (O_NONBLOCK | O_EXCL);  // PIDFD_NONBLOCK, PIDFD_THREAD
    std::optional<BriefChild> ended;
    if (file.pidfd().ended()) ended.emplace(remote);
    const uint64_t pid = ended ? ended->number() : file.pidfd().pid();
    const auto made = static_cast<uint64_t>(remote.call("cannot open a pidfd", SYS_pidfd_open, {pid, flags}));
    if (ended) ended->end();
    const auto want = static_cast<uint64_t>(descriptor.fd());
    if (made == want) {
      remote.call("cannot set up a pidfd", SYS_fcntl, {want, F_SETFD, descriptor.cloexec() ? FD_CLOEXEC : 0ul});
      return;
    }
    remote.call("cannot move a pidfd", SYS_dup3, {made, want, descriptor.cloexec() ? O_CLOEXEC : 0ul});
    remote.call("cannot close a pidfd", SYS_close, {made});
  }
};

}  // namespace

const FileKind& pidfd_kind() {
  static const PidfdKind kind;
  return kind;
}

}  // namespace icp
