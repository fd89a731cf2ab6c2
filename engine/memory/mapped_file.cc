// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/mapped_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include <cerrno>

#include "engine/base/error.h"
#include "engine/base/file_names.h"

namespace icp {
namespace {

std::string map_files_path(pid_t pid, const MapsEntry& entry) {
  return fmt::format("/proc/{}/map_files/{:x}-{:x}", pid, entry.start, entry.end);
}

// /proc/PID/maps shows the superblock's device; Btrfs and overlayfs tell stat(2) of others.
bool is_mapped_one(const char* path, const MapsEntry& entry, struct stat& status) {
  if (::stat(path, &status) != 0 || status.st_ino != entry.ino) return false;
  if (status.st_dev == makedev(entry.dev_major, entry.dev_minor)) return true;
  struct statfs system {};
  return ::statfs(path, &system) == 0 && (system.f_type == BTRFS_SUPER_MAGIC || system.f_type == OVERLAYFS_SUPER_MAGIC);
}

// Some path that leads to the same inode; empty when there is none.
std::string other_path(pid_t pid, const MapsEntry& entry, struct stat& status) {
  if (entry.path.starts_with('/') && !entry.deleted) {
    const std::string named = fmt::format("/proc/{}/root{}", pid, entry.path);
    if (is_mapped_one(named.c_str(), entry, status)) return named;
  }
  // One of several names may have gone, or it has been renamed.
  if (entry.path.starts_with("/dev/shm/")) {
    struct stat wanted {};
    wanted.st_dev = makedev(entry.dev_major, entry.dev_minor);
    wanted.st_ino = entry.ino;
    const std::string directory = directory_of(entry.path);
    const UniqueFd root = open_root_of(pid);
    for (const std::string& name :
         root ? names_in_directory(root.get(), directory, wanted) : std::vector<std::string>()) {
      const std::string found = fmt::format("/proc/{}/root{}{}", pid, directory, name);
      if (is_mapped_one(found.c_str(), entry, status)) return found;
    }
  }
  const std::string program = fmt::format("/proc/{}/exe", pid);
  if (is_mapped_one(program.c_str(), entry, status)) return program;
  for (const int number : list_proc_numbers(pid, "fd")) {
    const std::string held = fmt::format("/proc/{}/fd/{}", pid, number);
    if (is_mapped_one(held.c_str(), entry, status)) return held;
  }
  return {};
}

// The inode that was compared is the one that is opened, and a device that has its name by now is not.
UniqueFd open_other_path(pid_t pid, const MapsEntry& entry) {
  struct stat status {};
  const std::string path = other_path(pid, entry, status);
  const UniqueFd found(path.empty() || !S_ISREG(status.st_mode) ? -1 : ::open(path.c_str(), O_PATH | O_CLOEXEC));
  struct stat same {};
  if (!found || ::fstat(found.get(), &same) != 0 || same.st_ino != status.st_ino || same.st_dev != status.st_dev) {
    errno = EPERM;
    return {};
  }
  return UniqueFd(::open(fmt::format("/proc/self/fd/{}", found.get()).c_str(), O_RDONLY | O_CLOEXEC));
}

}  // namespace

int stat_mapped_file(pid_t pid, const MapsEntry& entry, struct stat& status) {
  if (::stat(map_files_path(pid, entry).c_str(), &status) == 0) return 0;
  if (errno != EPERM) return -1;
  if (!other_path(pid, entry, status).empty()) return 0;
  if (!entry.shared || (entry.path.starts_with('/') && !entry.deleted)) {
    errno = EPERM;
    return -1;
  }
  status = {};
  status.st_dev = makedev(entry.dev_major, entry.dev_minor);
  status.st_ino = entry.ino;
  status.st_mode = S_IFREG | 0777;
  return 0;
}

UniqueFd open_mapped_file(pid_t pid, const MapsEntry& entry) {
  const auto open_link = [pid](const MapsEntry& of) {
    UniqueFd fd(::open(map_files_path(pid, of).c_str(), O_RDONLY | O_CLOEXEC));
    return fd || errno != EPERM ? std::move(fd) : open_other_path(pid, of);
  };
  UniqueFd fd = open_link(entry);
  if (fd || errno != ENOENT) return fd;
  for (const MapsEntry& now : MapsEntry::read(pid)) {
    const bool around = now.start <= entry.start && entry.end <= now.end;
    if (around && now.ino == entry.ino && now.path == entry.path &&
        now.offset + (entry.start - now.start) == entry.offset) {
      return open_link(now);
    }
  }
  errno = ENOENT;
  return fd;
}

}  // namespace icp
