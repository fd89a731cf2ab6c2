// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/pidfd.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <charconv>
#include <optional>

#include "engine/base/error.h"
#include "engine/files/made_inside.h"

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
      if (seen == kEnded) description->message->mutable_pidfd()->set_ino(description->stat.st_ino);
      const pid_t pid = scan.vpid(seen).value_or(0);
      description->message->mutable_pidfd()->set_pid(static_cast<uint32_t>(pid));
    }
  }

  void create(RestoreContext& context, ImageFiles files) const override {
    for (const pb::OpenFile* file : files) context.made_inside.insert(file->id());
  }

  void finish(FinishContext& context, const pb::FileDescriptor& descriptor, const pb::OpenFile& file) const override {
    RemoteProcess& remote = context.remote;
    if (!file.pidfd().ended()) {
      if (!duplicate_made(context, descriptor)) open(remote, descriptor, file, file.pidfd().pid());
      return;
    }
    // All at once, since one child stands for the process that they are about.
    if (first_of_inode(context, file.pidfd().ino()) != &descriptor) return;
    BriefChild child(remote);
    for (const pb::FileDescriptor& other : context.process.fds()) {
      const auto found = context.files.find(other.file());
      if (found == context.files.end() || !is_about(*found->second, file.pidfd().ino())) continue;
      if (!duplicate_made(context, other)) open(remote, other, *found->second, child.number());
    }
    child.end();
  }

 private:
  static bool is_about(const pb::OpenFile& file, uint64_t ino) {
    return file.has_pidfd() && file.pidfd().ended() && file.pidfd().ino() == ino;
  }

  static const pb::FileDescriptor* first_of_inode(const FinishContext& context, uint64_t ino) {
    for (const pb::FileDescriptor& descriptor : context.process.fds()) {
      const auto found = context.files.find(descriptor.file());
      if (found != context.files.end() && is_about(*found->second, ino)) return &descriptor;
    }
    return nullptr;
  }

  static void open(RemoteProcess& remote, const pb::FileDescriptor& descriptor, const pb::OpenFile& file,
                   uint64_t pid) {
    const uint64_t flags = file.flags() & (O_NONBLOCK | O_EXCL);  // PIDFD_NONBLOCK, PIDFD_THREAD
    move_to(remote, static_cast<uint64_t>(remote.call("cannot open a pidfd", SYS_pidfd_open, {pid, flags})),
            descriptor);
  }
};

}  // namespace

const FileKind& pidfd_kind() {
  static const PidfdKind kind;
  return kind;
}

}  // namespace icp
