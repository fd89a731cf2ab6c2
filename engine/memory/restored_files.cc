// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/restored_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/file_systems.h"
#include "engine/base/times.h"

namespace icp {
namespace {

constexpr size_t kMaxOpen = 256;  // descriptors kept; the agent has others to open

}  // namespace

UniqueFd RestoredFiles::open(const std::string& path, int flags, unsigned mode) const {
  const FsIdentity as_user(identity_);
  return open_saved(root_fd_, path, flags, mode);
}

int RestoredFiles::unlink(const std::string& path) const {
  const UniqueFd directory = open(directory_of(path), O_DIRECTORY | O_PATH);
  const FsIdentity as_user(identity_);
  return directory ? ::unlinkat(directory.get(), last_name_of(path).c_str(), 0) : -1;
}

std::vector<std::string> RestoredFiles::names(const std::string& directory, const struct stat& status) const {
  if (!open(directory, O_DIRECTORY | O_PATH)) return {};
  const FsIdentity as_user(identity_);
  return names_in_directory(root_fd_, directory, status);
}

int RestoredFiles::make_directory(const std::string& path) const {
  const UniqueFd parent = open(directory_of(path), O_DIRECTORY | O_PATH);
  const FsIdentity as_user(identity_);
  return parent ? ::mkdirat(parent.get(), last_name_of(path).c_str(), 0700) : -1;
}

int RestoredFiles::remove_directory(const std::string& path) const {
  const UniqueFd parent = open(directory_of(path), O_DIRECTORY | O_PATH);
  const FsIdentity as_user(identity_);
  return parent ? ::unlinkat(parent.get(), last_name_of(path).c_str(), AT_REMOVEDIR) : -1;
}

int RestoredFiles::link(int fd, const std::string& path) const {
  const UniqueFd directory = open(directory_of(path), O_DIRECTORY | O_PATH);
  const std::string self = fmt::format("/proc/self/fd/{}", fd);
  const FsIdentity as_user(identity_);
  return directory ? ::linkat(AT_FDCWD, self.c_str(), directory.get(), last_name_of(path).c_str(), AT_SYMLINK_FOLLOW)
                   : -1;
}

int RestoredFiles::rename(const std::string& from, const std::string& to) const {
  const UniqueFd old_directory = open(directory_of(from), O_DIRECTORY | O_PATH);
  const UniqueFd new_directory = open(directory_of(to), O_DIRECTORY | O_PATH);
  const FsIdentity as_user(identity_);
  if (!old_directory || !new_directory) return -1;
  return ::renameat(old_directory.get(), last_name_of(from).c_str(), new_directory.get(), last_name_of(to).c_str());
}

int RestoredFiles::mapped_file(const pb::FileIdentity& file) {
  if (const auto known = open_.find(file.path()); known != open_.end()) {
    // Opened and compared before, by another process's mapping; still compare with this one's idea.
    struct stat status {};
    if (::fstat(known->second.get(), &status) == 0 && static_cast<uint64_t>(status.st_size) == file.size() &&
        nanoseconds(status.st_mtim) == file.mtime_ns()) {
      return known->second.get();
    }
    open_.erase(known);
  }
  if (!file.path().starts_with('/')) throw_error(ErrorKind::kImage, "damaged image: a mapped file has no path");
  UniqueFd fd = open(file.path(), O_RDONLY);
  if (!fd) {
    const int saved = errno;
    throw Error(ErrorKind::kImage, fmt::format("cannot open the mapped file {}: {}", file.path(), errno_text(saved)),
                saved,
                "install the same programs and libraries as where the checkpoint was taken; what a program makes and "
                "removes itself is kept by --checkpoint-files dir:PATH");
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) throw_errno("cannot look at {}", file.path());
  const int64_t mtime = nanoseconds(status.st_mtim);
  if (!S_ISREG(status.st_mode) || static_cast<uint64_t>(status.st_size) != file.size() || mtime != file.mtime_ns()) {
    throw Error(ErrorKind::kImage,
                fmt::format("the mapped file {} has changed since the checkpoint (size {} then, {} now)", file.path(),
                            file.size(), status.st_size),
                0, "put the version of that time back");
  }
  if (open_.size() >= kMaxOpen) open_.clear();
  return open_.emplace(file.path(), std::move(fd)).first->second.get();
}

}  // namespace icp
