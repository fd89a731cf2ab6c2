// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/object_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/files/image_path.h"

namespace icp {
namespace {

constexpr long kHugetlbMagic = 0x958458f6;

// An NFS client renames an open file that is removed to .nfsXXXX, and removes that at the last close.
bool nfs_leftover(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash != std::string::npos && path.compare(slash + 1, 4, ".nfs") == 0;
}

// .../job00012/slurm_script: slurmd removes a batch script with its job, and puts another job's elsewhere.
bool is_job_script(const std::string& path) {
  constexpr std::string_view kName = "/slurm_script";
  if (!path.ends_with(kName)) return false;
  const std::string directory = path.substr(0, path.size() - kName.size());
  return directory.substr(directory.rfind('/') + 1).starts_with("job");
}

class ObjectFileKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kObject; }

  bool recognises(FileScan&, Description& description) const override {
    const std::string& target = description.target;
    if (!S_ISREG(description.stat.st_mode) || !target.starts_with('/') || target.starts_with("/secretmem")) {
      return false;
    }
    return description.stat.st_nlink == 0 || target.starts_with("/memfd:") || target.starts_with("/dev/shm/") ||
           nfs_leftover(target) || is_job_script(target);
  }

  void check_one(FileScan& scan, Description& description) const override {
    if (description.info.flags & O_PATH) {
      scan.refuse(description, fmt::format("O_PATH descriptor of {}", description.target), "close it");
    } else if (const long type = scan.filesystem(description); type == kHugetlbMagic || type == PROC_SUPER_MAGIC) {
      scan.refuse(description,
                  fmt::format("{} file {}", type == kHugetlbMagic ? "huge-page" : "/proc", description.target),
                  "close it before a checkpoint");
    }
  }

  void capture_one(FileScan& scan, const ObjectResolver& objects, Description& description) const override {
    capture_identity(description);
    if (!objects) throw_error(ErrorKind::kUsage, "no memory module to save {}", description.target);
    const bool goes_away = is_job_script(description.target);
    description.message->mutable_object()->set_object(
        objects(scan.take(description), description.target + std::string(goes_away ? kDeleted : "")));
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    if (!context.options.open_object) throw_bad_file(file, "there is no memory module to restore its content");
    constexpr uint32_t keep = O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC | O_SYNC | O_LARGEFILE | O_NOATIME;
    UniqueFd fd = context.options.open_object(file.object().object(), file.flags() & keep);
    if (!fd) throw_bad_file(file, fmt::format("memory object {} cannot be opened", file.object().object()));
    seek_to_position(file, fd.get());
    if (file.identity().path().ends_with(kDeleted)) {  // filling it has changed the time
      const int64_t when = file.identity().mtime_ns();
      const timespec times[2] = {{0, UTIME_OMIT}, {when / 1'000'000'000, when % 1'000'000'000}};
      ::futimens(fd.get(), times);
    }
    return fd;
  }
};

}  // namespace

const FileKind& object_file_kind() {
  static const ObjectFileKind kind;
  return kind;
}

}  // namespace icp
