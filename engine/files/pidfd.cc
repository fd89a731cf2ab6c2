// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/pidfd.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <charconv>

#include "engine/base/error.h"

namespace icp {
namespace {

// The agent's view; -1 for a process that has been waited for.
std::optional<pid_t> pid_of(const Description& description) {
  const auto text = description.info.field("Pid");
  pid_t pid = 0;
  if (!text || std::from_chars(text->data(), text->data() + text->size(), pid).ec != std::errc()) return {};
  return pid;
}

class PidfdKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kPidfd; }

  bool recognises(FileScan&, Description& description) const override {
    return description.target == "anon_inode:[pidfd]" || description.target.starts_with("pidfd:");
  }

  void check(FileScan& scan, Descriptions descriptions) const override {
    for (Description* description : descriptions) {
      const auto pid = pid_of(*description);
      if (!pid || *pid <= 0) {
        scan.refuse(*description, "pidfd of a process that has ended", "close it");
      } else if (!scan.vpid(*pid)) {
        scan.refuse(*description, fmt::format("pidfd of process {}, which is not part of the job", *pid), "close it");
      }
    }
  }

  void capture(FileScan& scan, const ObjectResolver&, Descriptions descriptions) const override {
    for (Description* description : descriptions) {
      const pid_t pid = scan.vpid(pid_of(*description).value_or(0)).value_or(0);
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
    const auto made =
        static_cast<uint64_t>(remote.call("cannot open a pidfd", SYS_pidfd_open, {file.pidfd().pid(), flags}));
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
