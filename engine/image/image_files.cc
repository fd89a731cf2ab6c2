// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/image_files.h"

#include <fcntl.h>
#include <sys/fsuid.h>
#include <unistd.h>


#include "engine/base/error.h"
#include "engine/base/file_names.h"

namespace icp {
namespace {

struct stat stat_of(int fd, const std::string& path) {
  struct stat result {};
  if (::fstat(fd, &result) != 0) throw_errno("cannot look at {}", path);
  return result;
}

bool is_trusted_owner(uid_t owner, const Identity& identity) { return owner == identity.uid || owner == 0; }

// errno of a failed open that says "not the kind of thing an image consists of".
bool is_wrong_kind(int error) { return error == ELOOP || error == ENOTDIR || error == ENXIO || error == EISDIR; }

}  // namespace

void check_private(int fd, const std::string& path, const Identity& identity) {
  const struct stat info = stat_of(fd, path);
  if (!is_trusted_owner(info.st_uid, identity)) {
    throw Error(ErrorKind::kPermission,
                fmt::format("{} belongs to user {}, not to user {}", path, info.st_uid, identity.uid), 0,
                "use a directory of your own");
  }
  if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    throw Error(ErrorKind::kPermission,
                fmt::format("others than its owner may write to {} (mode {:04o})", path, info.st_mode & 07777u), 0,
                fmt::format("chmod go-rwx {}", path));
  }
}

UniqueFd open_private_dir(int at, const std::string& name, const std::string& path, const Identity& identity) {
  UniqueFd fd(::openat(at, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) {
    if (errno == ENOENT) throw_error(ErrorKind::kImage, "{} is missing", path);
    if (is_wrong_kind(errno)) throw_error(ErrorKind::kImage, "{} is not a directory", path);
    throw_errno("cannot open {}", path);
  }
  check_private(fd.get(), path, identity);
  return fd;
}

bool make_private_dir(int at, const std::string& name, const std::string& path) {
  if (::mkdirat(at, name.c_str(), 0700) != 0) {
    if (errno == EEXIST) return false;
    const int error = errno;
    const bool denied = error == EACCES || error == EPERM;
    const std::string whom = denied ? fmt::format(" as user {}", ::setfsuid(static_cast<uid_t>(-1))) : "";
    errno = error;
    throw_errno("cannot create {}{}", path, whom);
  }
  // A umask can only have taken bits away. O_PATH needs none of them, and chmod through /proc cannot be led astray by
  // somebody who replaces the name in a directory that others may write to.
  const UniqueFd fd(::openat(at, name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) throw_errno("cannot open {}", path);
  if ((stat_of(fd.get(), path).st_mode & 0777) != 0700 &&
      ::chmod(fmt::format("/proc/self/fd/{}", fd.get()).c_str(), 0700) != 0) {
    throw_errno("cannot set the mode of {}", path);
  }
  return true;
}

UniqueFd create_private_file(int at, const std::string& name, const std::string& path) {
  UniqueFd fd(::openat(at, name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) throw_errno("cannot create {}", path);
  if ((stat_of(fd.get(), path).st_mode & 07777) != 0600 && ::fchmod(fd.get(), 0600) != 0) {
    throw_errno("cannot set the mode of {}", path);
  }
  return fd;
}

UniqueFd open_regular_file(int at, const std::string& name, const std::string& path, const Identity& identity) {
  // O_NONBLOCK: opening a FIFO that somebody put there must not hang.
  UniqueFd fd(::openat(at, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  if (!fd) {
    if (errno == ENOENT) throw_error(ErrorKind::kImage, "{} is missing", path);
    if (is_wrong_kind(errno)) throw_error(ErrorKind::kImage, "{} is not a regular file", path);
    throw_errno("cannot open {}", path);
  }
  const struct stat info = stat_of(fd.get(), path);
  if (!S_ISREG(info.st_mode)) throw_error(ErrorKind::kImage, "{} is not a regular file", path);
  if (!is_trusted_owner(info.st_uid, identity)) {
    throw_error(ErrorKind::kPermission, "{} belongs to user {}, not to user {}", path, info.st_uid, identity.uid);
  }
  return fd;
}

std::vector<std::string> list_dir(int fd, const std::string& path) {
  auto names = list_directory(fd);
  if (!names) throw_errno("cannot list {}", path);
  return std::move(*names);
}

bool remove_flat_dir(int at, const std::string& name) {
  const UniqueFd fd(::openat(at, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return errno == ENOENT;
  for (const std::string& file : list_dir(fd.get(), name)) {
    if (::unlinkat(fd.get(), file.c_str(), 0) != 0 && errno != ENOENT) return false;
  }
  return ::unlinkat(at, name.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT;
}

uint64_t file_size(int fd, const std::string& path) { return static_cast<uint64_t>(stat_of(fd, path).st_size); }

void read_at(int fd, void* to, size_t bytes, uint64_t offset, const std::string& path) {
  auto* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = ::pread(fd, at, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno("cannot read {} at offset {}", path, offset);
    if (got == 0) throw_error(ErrorKind::kImage, "{} ends at offset {}, {} bytes too early", path, offset, bytes);
    at += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<size_t>(got);
  }
}

void write_at(int fd, const void* from, size_t bytes, uint64_t offset, const std::string& path) {
  const auto* at = static_cast<const char*>(from);
  while (bytes > 0) {
    const ssize_t put = ::pwrite(fd, at, bytes, static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw_errno("cannot write {}", path);
    at += put;
    offset += static_cast<uint64_t>(put);
    bytes -= static_cast<size_t>(put);
  }
}

void flush_to_disk(int fd, const std::string& path) {
  // EINVAL: a file system that has nothing to flush for directories.
  if (::fsync(fd) != 0 && errno != EINVAL) throw_errno("cannot flush {} to disk", path);
}

}  // namespace icp
