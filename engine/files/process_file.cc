// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/process_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/procfs.h"
#include "engine/files/made_inside.h"

namespace icp {
namespace {

constexpr std::string_view kProc = "/proc/";

struct Place {
  pid_t pid = 0;  // as the proc file system has it
  std::string rest;
};

std::optional<Place> place_of(const Description& description) {
  std::string_view path = description.target;
  if (!path.starts_with(kProc)) return {};
  path.remove_prefix(kProc.size());
  if (path.ends_with(kDeleted)) path.remove_suffix(kDeleted.size());
  Place place;
  const auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), place.pid);
  if (error != std::errc() || place.pid <= 0 || (end != path.data() + path.size() && *end != '/')) return {};
  place.rest.assign(end, path.data() + path.size());
  return place;
}

enum class Whose { kOfJob, kEnded, kOther };

// Numbers in the proc file system of a restored capsule are those in it.
Whose whose(const FileScan& scan, const Description& description, const Place& place) {
  const auto& all = scan.processes();
  const bool ours = std::any_of(all.begin(), all.end(), [&](const ProcessRef& one) { return one.vpid == place.pid; });
  if (ours || place.pid == 1) return Whose::kOfJob;
  if (description.target.ends_with(kDeleted)) return Whose::kEnded;
  const pid_t reader = all[description.uses.front().process].pid;
  const std::string path = fmt::format("/proc/{}/root{}{}", reader, kProc, place.pid);
  return ::access(path.c_str(), F_OK) == 0 ? Whose::kOther : Whose::kEnded;
}

class ProcessFileKind final : public MadeInsideKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kProcessFile; }

  bool recognises(FileScan& scan, Description& description) const override {
    if (!S_ISREG(description.stat.st_mode) && !S_ISDIR(description.stat.st_mode)) return false;
    if (description.info.flags & O_PATH) return false;
    return place_of(description) && scan.filesystem(description) == PROC_SUPER_MAGIC;
  }

  void check_one(FileScan& scan, Description& description) const override {
    const Place place = *place_of(description);
    if (description.access() != O_RDONLY) {
      scan.refuse(description, fmt::format("a file about a process, open for writing: {}", description.target),
                  "close it before a checkpoint");
    } else if (whose(scan, description, place) == Whose::kOther) {
      scan.refuse(description,
                  fmt::format("a file about process {}, which is not in the job: {}", place.pid, description.target),
                  "close it before a checkpoint");
    }
  }

  void capture_one(FileScan& scan, const ObjectResolver&, Description& description) const override {
    const Place place = *place_of(description);
    pb::ProcessFile& message = *description.message->mutable_process_file();
    if (whose(scan, description, place) == Whose::kOfJob) message.set_pid(static_cast<uint32_t>(place.pid));
    message.set_rest(place.rest);
  }

 private:
  uint64_t make(RemoteProcess& remote, const pb::OpenFile& file) const override {
    if (file.process_file().pid() != 0) return open(remote, file, file.process_file().pid());
    BriefChild child(remote);
    const uint64_t made = open(remote, file, child.number());
    child.end();
    return made;
  }

  // By the process, with its rights, and by no link: none leads out of what the kernel tells about a process.
  static uint64_t open(RemoteProcess& remote, const pb::OpenFile& file, uint64_t pid) {
    const pb::ProcessFile& image = file.process_file();
    const std::string path = std::string(kProc) + std::to_string(pid) + image.rest();
    if ((!image.rest().empty() && image.rest()[0] != '/') || !is_usable_path(path) ||
        (file.flags() & O_ACCMODE) != O_RDONLY)
      throw_bad_file(file, "no file about a process has this path");
    open_how how{};
    how.flags = (file.flags() & (O_NONBLOCK | O_DIRECTORY)) | O_CLOEXEC;
    how.resolve = RESOLVE_NO_SYMLINKS;
    remote.reset_scratch();
    const uint64_t name = remote.stage_string(path).value, request = remote.stage_value(how).value;
    const int64_t made = remote.syscall(SYS_openat2, {static_cast<uint64_t>(AT_FDCWD), name, request, sizeof how});
    if (made < 0)
      throw Error(ErrorKind::kSystem,
                  fmt::format("cannot open {} again: {}", path, errno_text(static_cast<int>(-made))),
                  static_cast<int>(-made));
    if (file.position() != 0)  // of a process that has ended there is none
      remote.syscall(SYS_lseek, {static_cast<uint64_t>(made), file.position(), SEEK_SET});
    return static_cast<uint64_t>(made);
  }
};

}  // namespace

const FileKind& process_file_kind() {
  static const ProcessFileKind kind;
  return kind;
}

}  // namespace icp
