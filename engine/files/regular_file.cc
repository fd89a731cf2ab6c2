// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/regular_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "engine/base/error.h"
#include "engine/files/image_path.h"
#include "engine/files/kept_files.h"
#include "engine/files/saved_file.h"

namespace icp {
namespace {

constexpr long kHugetlbMagic = 0x958458f6;

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
    case kHugetlbMagic:
      return "a file in huge pages";
    default:
      return nullptr;
  }
}

bool is_made_up(long filesystem) { return filesystem == PROC_SUPER_MAGIC || filesystem == SYSFS_MAGIC; }

// In a rehearsal. The running job's watches and leases see nothing of a file that is opened for reading without them.
UniqueFd open_to_look(const RestoreContext& context, const pb::OpenFile& file, const FoundPath& found) {
  if (!open_for_writing(file) && !file.has_lease()) return open_found(context, file, found);
  const std::string path = fmt::format("/proc/self/fd/{}", found.fd.get());
  const FsIdentity as_user(context.options.identity);
  if (open_for_writing(file) && ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) != 0 &&
      !(errno == EACCES && is_own_file(context, found)))
    throw_errno("cannot open {} again", image_file_name(file));
  UniqueFd fd(file.has_lease() ? -1 : ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (fd) return fd;
  fd.reset(::memfd_create("stand-in", MFD_CLOEXEC));
  if (!fd || ::ftruncate(fd.get(), found.stat.st_size) != 0) throw_errno("cannot stand in for a file");
  return fd;
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
    if (is_made_up(filesystem) && description.access() != O_RDONLY) {
      scan.refuse(description, fmt::format("kernel file {} open for writing", description.target),
                  "close it before a checkpoint");
      return;
    }
    path_leads_back(scan, description);
  }

  void capture(FileScan& scan, const ObjectResolver& objects, Descriptions descriptions) const override {
    SingleFileKind::capture(scan, objects, descriptions);
    if (scan.kept != nullptr) scan.kept->capture(scan, descriptions);
  }

  void capture_one(FileScan& scan, const ObjectResolver&, Description& description) const override {
    capture_identity(description);
    const bool own = !is_made_up(scan.filesystem(description));
    description.message->mutable_regular()->set_size(own ? static_cast<uint64_t>(description.stat.st_size) : 0);
  }

  void create(RestoreContext& context, ImageFiles files) const override {
    for (const pb::OpenFile* file : files) {
      context.paths.insert(file->identity().path());
      if (!file->regular().has_content()) continue;
      if (file->regular().content().size() != file->regular().size()) throw_bad_file(*file, "its content is cut off");
      context.contents.emplace(std::pair(file->identity().dev(), file->identity().ino()), file);
    }
    SingleFileKind::create(context, files);
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    const uint64_t saved = file.regular().size();
    if (saved > static_cast<uint64_t>(INT64_MAX)) throw_bad_file(file, "its size is out of range");
    const std::pair inode(file.identity().dev(), file.identity().ino());
    if (context.options.dry && file.regular().object() != 0 && context.remade.count(inode) != 0) {
      UniqueFd stand_in = context.options.open_object(file.regular().object(), file.flags());
      seek_to_position(file, stand_in.get());
      return stand_in;
    }
    const FoundPath found = find_saved_file(context, file);
    const auto now = static_cast<uint64_t>(found.stat.st_size);
    // A file that is only read may well be somebody else's log: its growth is none of our business.
    if (!open_for_writing(file) && now < saved) {
      throw_bad_file(file, fmt::format("it had {} bytes at the checkpoint and has only {} now", saved, now));
    }
    UniqueFd fd = context.options.dry ? open_to_look(context, file, found) : open_found(context, file, found);
    seek_to_position(file, fd.get());
    if (open_for_writing(file)) settle_changes(context, file, found, fd.get());
    return fd;
  }
};

}  // namespace

const FileKind& regular_file_kind() {
  static const RegularFileKind kind;
  return kind;
}

bool has_own_content(FileScan& scan, Description& description) {
  return description.kind == &regular_file_kind() && (description.info.flags & O_PATH) == 0 && !description.outer &&
         !is_made_up(scan.filesystem(description));
}

}  // namespace icp
