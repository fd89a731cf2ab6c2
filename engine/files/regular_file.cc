// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/regular_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "engine/base/error.h"
#include "engine/files/image_path.h"

namespace icp {
namespace {

constexpr long kMqueueMagic = 0x19800202, kHugetlbMagic = 0x958458f6;

// Files whose content the kernel makes up: they have a path, but the path means something else after a restart.
const char* kernel_file(long filesystem, const std::string& path) {
  switch (filesystem) {
    case PROC_SUPER_MAGIC:
      return path.size() > 6 && path[6] >= '0' && path[6] <= '9' ? "a file about a process" : nullptr;
    case CGROUP_SUPER_MAGIC:
    case CGROUP2_SUPER_MAGIC:
      return "a control group file";
    case NSFS_MAGIC:
      return "a namespace";
    case DEBUGFS_MAGIC:
    case TRACEFS_MAGIC:
    case SECURITYFS_MAGIC:
    case BPF_FS_MAGIC:
      return "a kernel file";
    case kMqueueMagic:
      return "a POSIX message queue";
    case kHugetlbMagic:
      return "a file in huge pages";
    default:
      return nullptr;
  }
}

class RegularFileKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kRegular; }

  // A path in the link target: "anon_inode:[x]" and others have none.
  bool recognises(FileScan&, Description& description) const override {
    return S_ISREG(description.stat.st_mode) && description.target.starts_with('/');
  }

  void check_one(FileScan& scan, Description& description) const override {
    const long filesystem = scan.filesystem(description);
    if (const char* what = kernel_file(filesystem, description.target)) {
      scan.refuse(description, fmt::format("{}: {}", what, description.target), "close it before a checkpoint");
      return;
    }
    const bool made_up = filesystem == PROC_SUPER_MAGIC || filesystem == SYSFS_MAGIC;
    if (made_up && description.access() != O_RDONLY) {
      scan.refuse(description, fmt::format("kernel file {} open for writing", description.target),
                  "close it before a checkpoint");
      return;
    }
    path_leads_back(scan, description);
  }

  void capture_one(FileScan& scan, const ObjectResolver&, Description& description) const override {
    capture_identity(description);
    const long filesystem = scan.filesystem(description);
    const bool made_up = filesystem == PROC_SUPER_MAGIC || filesystem == SYSFS_MAGIC;
    description.message->mutable_regular()->set_size(made_up ? 0 : static_cast<uint64_t>(description.stat.st_size));
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    const FoundPath found = find_image_path(context, file, S_IFREG);
    const uint64_t saved = file.regular().size(), now = static_cast<uint64_t>(found.stat.st_size);
    if (saved > static_cast<uint64_t>(INT64_MAX)) throw_bad_file(file, "its size is out of range");
    if (now < saved) {
      throw_bad_file(file, fmt::format("it had {} bytes at the checkpoint and has only {} now", saved, now));
    }
    // A file that is only read may well be somebody else's log: its growth is none of our business.
    const bool writable = (file.flags() & O_ACCMODE) != O_RDONLY && !(file.flags() & O_PATH);
    const bool grown = writable && now > saved;
    if (grown && context.options.grown == GrownFile::kFail) {
      throw_bad_file(file, fmt::format("it had {} bytes at the checkpoint and has grown to {} since", saved, now));
    }
    UniqueFd fd = open_found(context, file, found);
    seek_to_position(file, fd.get());
    if (grown && context.options.grown == GrownFile::kTruncate) {
      context.later([fd = fd.get(), saved, path = file.identity().path()] {
        if (::ftruncate(fd, static_cast<off_t>(saved)) != 0) throw_errno("cannot cut {} back to {} bytes", path, saved);
      });
    }
    return fd;
  }
};

}  // namespace

const FileKind& regular_file_kind() {
  static const RegularFileKind kind;
  return kind;
}

}  // namespace icp
