// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/namespace_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>

#include "engine/base/error.h"
#include "engine/files/made_inside.h"

namespace icp {
namespace {

constexpr std::array<std::string_view, 8> kNames = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};

// "net:[4026531833]"
std::string_view name_of(const Description& description) {
  const std::string_view target = description.target;
  const size_t colon = target.find(":[");
  return colon == std::string_view::npos ? "" : target.substr(0, colon);
}

// Somebody who is in it, by the capsule's number.
std::optional<pid_t> member_of(const FileScan& scan, const Description& description) {
  for (const ProcessRef& process : scan.processes()) {
    struct stat status {};
    const std::string path = fmt::format("/proc/{}/ns/{}", process.pid, name_of(description));
    if (process.vpid > 0 && ::stat(path.c_str(), &status) == 0 && status.st_ino == description.stat.st_ino)
      return process.vpid;
  }
  return {};
}

class NamespaceFileKind final : public MadeInsideKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kNamespaceFile; }

  bool recognises(FileScan&, Description& description) const override {
    return std::find(kNames.begin(), kNames.end(), name_of(description)) != kNames.end() &&
           (description.info.flags & O_PATH) == 0;
  }

  void check_one(FileScan& scan, Description& description) const override {
    if (member_of(scan, description)) return;
    scan.refuse(description, fmt::format("a namespace that no process of the job is in: {}", description.target),
                "close it before a checkpoint");
  }

  void capture_one(FileScan& scan, const ObjectResolver&, Description& description) const override {
    pb::NamespaceFile& message = *description.message->mutable_namespace_file();
    message.set_name(std::string(name_of(description)));
    message.set_pid(static_cast<uint32_t>(member_of(scan, description).value_or(0)));
  }

 private:
  void check_image(const pb::OpenFile& file) const override {
    if (std::find(kNames.begin(), kNames.end(), file.namespace_file().name()) == kNames.end())
      throw_bad_file(file, "there is no namespace of this kind");
  }

  uint64_t make(RemoteProcess& remote, const pb::OpenFile& file) const override {
    const pb::NamespaceFile& image = file.namespace_file();
    remote.reset_scratch();
    const uint64_t path = remote.stage_string(fmt::format("/proc/{}/ns/{}", image.pid(), image.name())).value;
    return static_cast<uint64_t>(remote.call("cannot open a namespace", SYS_openat,
                                             {static_cast<uint64_t>(AT_FDCWD), path, O_RDONLY | O_CLOEXEC}));
  }
};

}  // namespace

const FileKind& namespace_file_kind() {
  static const NamespaceFileKind kind;
  return kind;
}

}  // namespace icp
