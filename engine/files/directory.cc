// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <string_view>
#include <utility>

#include "engine/base/error.h"
#include "engine/files/image_path.h"

namespace icp {
namespace {

constexpr std::string_view kDeleted = " (deleted)";

bool is_removed(const Description& description) {
  return description.stat.st_nlink == 0 && description.target.ends_with(kDeleted);
}

// A directory that nothing leads to, one for all who had it: made somewhere and removed at once.
FoundPath make_removed(RestoreContext& context, const pb::OpenFile& file) {
  const std::pair inode(file.identity().dev(), file.identity().ino());
  UniqueFd& known = context.removed_directories[inode];
  FoundPath found;
  if (!known) {
    const FsIdentity as_user(context.options.identity);
    std::string path = "/tmp/.icp-removed-XXXXXX";
    if (::mkdtemp(path.data()) == nullptr)
      throw_errno("cannot make the removed directory {} again", file.identity().path());
    known.reset(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    ::chmod(path.c_str(), file.identity().mode() & 07777);
    ::rmdir(path.c_str());
    if (!known) throw_errno("cannot make the removed directory {} again", file.identity().path());
  }
  found.fd.reset(::fcntl(known.get(), F_DUPFD_CLOEXEC, 0));
  if (!found.fd || ::fstat(found.fd.get(), &found.stat) != 0) throw_errno("cannot look at a removed directory");
  return found;
}

class DirectoryKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kDirectory; }

  bool recognises(FileScan&, Description& description) const override {
    return S_ISDIR(description.stat.st_mode) && description.target.starts_with('/');
  }

  void check_one(FileScan& scan, Description& description) const override {
    const std::string& path = description.target;
    if (scan.filesystem(description) == PROC_SUPER_MAGIC && path.size() > 6 && path[6] >= '0' && path[6] <= '9') {
      scan.refuse(description, fmt::format("a directory about a process: {}", path), "close it before a checkpoint");
      return;
    }
    if (!is_removed(description)) path_leads_back(scan, description);
  }

  void capture_one(FileScan&, const ObjectResolver&, Description& description) const override {
    capture_identity(description);
    description.message->mutable_directory()->set_removed(is_removed(description));
    if (is_removed(description)) {
      std::string& path = *description.message->mutable_identity()->mutable_path();
      path.resize(path.size() - kDeleted.size());
    }
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    const FoundPath found =
        file.directory().removed() ? make_removed(context, file) : find_image_path(context, file, S_IFDIR);
    UniqueFd fd = open_found(context, file, found);
    // The position is a cookie of the file system; 0 is the only value that never changes its meaning.
    if (file.position() != 0 && !file.directory().removed()) seek_to_position(file, fd.get());
    return fd;
  }
};

}  // namespace

const FileKind& directory_kind() {
  static const DirectoryKind kind;
  return kind;
}

}  // namespace icp
