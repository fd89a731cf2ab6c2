// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <limits.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/file_systems.h"
#include "engine/base/identity.h"
#include "engine/base/procfs.h"
#include "engine/files/image_path.h"

namespace icp {
namespace {

bool is_removed(const Description& description) {
  return description.stat.st_nlink == 0 && description.target.ends_with(kDeleted);
}

// Makes what is missing of the way to `path`, and it, and removes all of that again. None: it is there, or cannot be.
UniqueFd make_and_remove(int root, const std::string& path, uint32_t mode) {
  std::vector<std::pair<UniqueFd, std::string>> made;  // parents, and names there
  UniqueFd directory;
  for (size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string whole = path.substr(0, slash), name = whole.substr(whole.rfind('/') + 1);
    UniqueFd parent = open_saved(root, directory_of(whole), O_PATH | O_DIRECTORY);
    const bool is_new = parent && ::mkdirat(parent.get(), name.c_str(), 0700) == 0;
    if (is_new && slash == std::string::npos) {
      directory.reset(::openat(parent.get(), name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      if (::fchmodat(parent.get(), name.c_str(), mode & 07777, 0) != 0) directory.reset();
    }
    if (is_new) made.emplace_back(std::move(parent), name);
    if (slash == std::string::npos) break;
  }
  for (auto one = made.rbegin(); one != made.rend(); ++one)
    ::unlinkat(one->first.get(), one->second.c_str(), AT_REMOVEDIR);
  return directory;
}

FoundPath make_removed(RestoreContext& context, const pb::OpenFile& file) {
  const std::pair inode(file.identity().dev(), file.identity().ino());
  FoundPath found;
  found.fd.reset(
      ::fcntl(removed_directory(context, inode, file.identity().path(), file.identity().mode()), F_DUPFD_CLOEXEC, 0));
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

int removed_directory(RestoreContext& context, const RestoreContext::Inode& inode, const std::string& path,
                      uint32_t mode) {
  UniqueFd& known = context.removed_directories[inode];
  if (known) return known.get();
  const FsIdentity as_user(context.options.identity);
  const std::string own = fmt::format(".icp-{}", inode.second);  // another directory may have the name now
  for (const std::string& place : {path, path + own, "/tmp/" + own}) {
    if (!known && place.starts_with('/') && place.size() < PATH_MAX)
      known = make_and_remove(context.options.root_fd, place, mode);
  }
  if (!known) throw_errno("cannot make the removed directory {} again", path);
  return known.get();
}

const FileKind& directory_kind() {
  static const DirectoryKind kind;
  return kind;
}

}  // namespace icp
