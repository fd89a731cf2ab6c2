// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/pidfd.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <charconv>
#include <map>
#include <optional>
#include <utility>
#include <vector>

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

  // Of an ended process nothing can be learnt any more, so that a child of icp-init's, which is in the PID namespace,
  // stands for it: the same for all that refer to it, wherever they are.
  void create(RestoreContext& context, ImageFiles files) const override {
    std::map<uint64_t, std::vector<const pb::OpenFile*>> ended;
    for (const pb::OpenFile* file : files) {
      if (file->pidfd().ended())
        ended[file->pidfd().ino()].push_back(file);
      else
        context.made_inside.insert(file->id());
    }
    if (ended.empty()) return;
    RemoteProcess& init = init_of(context, *ended.begin()->second.front());
    for (const auto& [ino, same] : ended) {
      BriefChild child(init);
      for (const pb::OpenFile* file : same) {
        context.put(*file, init.take_away_fd(init.call("cannot open a pidfd", SYS_pidfd_open,
                                                       {child.number(), file->flags() & kFlags})));
      }
      child.end();
    }
  }

  void finish(FinishContext& context, const pb::FileDescriptor& descriptor, const pb::OpenFile& file) const override {
    RemoteProcess& remote = context.remote;
    if (file.pidfd().ended() || duplicate_made(context, descriptor)) return;
    const int64_t made =
        remote.call("cannot open a pidfd", SYS_pidfd_open, {file.pidfd().pid(), file.flags() & kFlags});
    move_to(remote, static_cast<uint64_t>(made), descriptor);
  }

 private:
  static constexpr uint32_t kFlags = O_NONBLOCK | O_EXCL;  // PIDFD_NONBLOCK, PIDFD_THREAD
};

}  // namespace

const FileKind& pidfd_kind() {
  static const PidfdKind kind;
  return kind;
}

}  // namespace icp
