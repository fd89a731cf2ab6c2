// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/file_systems.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <map>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/mutex.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

constexpr ino_t kProcRoot = 1;  // PROC_ROOT_INO of the kernel

// Of linux/magic.h, and, as numbers, of what the kernel or others keep in their own sources.
constexpr auto kKeepFiles = std::to_array<unsigned long>({
    EXT4_SUPER_MAGIC,   XFS_SUPER_MAGIC,       BTRFS_SUPER_MAGIC,    TMPFS_MAGIC,
    RAMFS_MAGIC,        OVERLAYFS_SUPER_MAGIC, NFS_SUPER_MAGIC,      SMB_SUPER_MAGIC,
    CIFS_SUPER_MAGIC,   SMB2_SUPER_MAGIC,      FUSE_SUPER_MAGIC,     V9FS_MAGIC,
    CEPH_SUPER_MAGIC,   AFS_SUPER_MAGIC,       AFS_FS_MAGIC,         CODA_SUPER_MAGIC,
    OCFS2_SUPER_MAGIC,  F2FS_SUPER_MAGIC,      NILFS_SUPER_MAGIC,    REISERFS_SUPER_MAGIC,
    SQUASHFS_MAGIC,     EROFS_SUPER_MAGIC_V1,  CRAMFS_MAGIC,         ISOFS_SUPER_MAGIC,
    UDF_SUPER_MAGIC,    MSDOS_SUPER_MAGIC,     EXFAT_SUPER_MAGIC,    MINIX_SUPER_MAGIC,
    MINIX3_SUPER_MAGIC, HPFS_SUPER_MAGIC,      ECRYPTFS_SUPER_MAGIC, ZONEFS_MAGIC,
    AFFS_SUPER_MAGIC,   JFFS2_SUPER_MAGIC,
    0x0BD00BD0,  // lustre
    0x47504653,  // gpfs
    0x19830326,  // beegfs
    0x2FC12FC1,  // zfs
    0xCA451A4E,  // bcachefs
    0x01161970,  // gfs2
    0x20030528,  // orangefs
    0xAAD7AAEA,  // panfs
    0xBEEFDEAD,  // snfs
    0x3153464A,  // jfs
    0x7366746E,  // ntfs3
    0x5346544E,  // ntfs
    0xA501FCF5,  // vxfs
    0x61756673,  // aufs
    0x786F4256,  // vboxsf
    0x0000482B,  // hfsplus
    0x24051905,  // ubifs
    0x00011954,  // ufs
});
constexpr auto kMadeUp = std::to_array<unsigned long>({
    CGROUP_SUPER_MAGIC,   CGROUP2_SUPER_MAGIC, NSFS_MAGIC,   DEBUGFS_MAGIC,  TRACEFS_MAGIC,  SECURITYFS_MAGIC,
    SELINUX_MAGIC,        SMACK_MAGIC,         BPF_FS_MAGIC, EFIVARFS_MAGIC, PSTOREFS_MAGIC, BINFMTFS_MAGIC,
    RDTGROUP_SUPER_MAGIC, HUGETLBFS_MAGIC,     SOCKFS_MAGIC, PIPEFS_MAGIC,
    0x19800202,  // mqueue
    0x62656570,  // configfs
    0x65735543,  // fusectl
    0x67596969,  // rpc_pipefs
});

bool is_in(const auto& list, unsigned long magic) { return std::find(list.begin(), list.end(), magic) != list.end(); }

std::string path_of(int fd) {
  std::array<char, PATH_MAX> path;
  const ssize_t length = ::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), path.data(), path.size());
  return length > 0 ? std::string(path.data(), static_cast<size_t>(length)) : std::string();
}

// A file system that this program does not know is taken where it is mounted from a device or a server: what the kernel
// makes up has a name without a slash there.
bool has_source(dev_t dev) {
  for (const MountEntry& mount : MountEntry::read(::getpid())) {
    if (mount.dev_major == major(dev) && mount.dev_minor == minor(dev))
      return mount.source.find('/') != std::string::npos;
  }
  return false;
}

FileSystemKind find_kind(int fd, dev_t dev) {
  struct statfs info {};
  if (::fstatfs(fd, &info) != 0) return FileSystemKind::kOther;
  const auto magic = static_cast<unsigned long>(info.f_type) & UINT32_MAX;
  const FileSystemKind kind = known_file_system(static_cast<long>(magic));
  if (kind != FileSystemKind::kOther || is_in(kMadeUp, magic)) return kind;
  return has_source(dev) ? FileSystemKind::kFiles : kind;
}

}  // namespace

FileSystemKind known_file_system(long magic) {
  const auto number = static_cast<unsigned long>(magic) & UINT32_MAX;
  if (is_in(kKeepFiles, number)) return FileSystemKind::kFiles;
  if (number == PROC_SUPER_MAGIC || number == SYSFS_MAGIC) return FileSystemKind::kViews;
  return number == DEVPTS_SUPER_MAGIC ? FileSystemKind::kTerminals : FileSystemKind::kOther;
}

// Asked once for each file system: some servers take long to answer statfs(2).
FileSystemKind file_system_kind(int fd) {
  static Mutex mutex;
  static std::map<dev_t, FileSystemKind> known;
  struct stat status {};
  if (::fstat(fd, &status) != 0) return FileSystemKind::kOther;
  const MutexLock lock(mutex);
  const auto [kind, added] = known.emplace(status.st_dev, FileSystemKind::kOther);
  if (added) kind->second = find_kind(fd, status.st_dev);
  return kind->second;
}

std::string refused_file_system(const std::string& path, int fd) {
  struct statfs info {};
  ::fstatfs(fd, &info);
  return fmt::format("{} is in a file system of type {:#x}, which keeps no files of programs", path,
                     static_cast<unsigned long>(info.f_type) & UINT32_MAX);
}

bool is_about_a_process(int root, int fd) {
  struct statfs own {};
  if (::fstatfs(fd, &own) == 0 && own.f_type != PROC_SUPER_MAGIC) return false;
  const std::string path = path_of(fd);
  for (size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    const UniqueFd directory = open_below(root, path.substr(0, slash), O_PATH | O_DIRECTORY | O_NOFOLLOW);
    struct stat status {};
    struct statfs info {};
    if (!directory || ::fstat(directory.get(), &status) != 0 || ::fstatfs(directory.get(), &info) != 0) return true;
    if (info.f_type != PROC_SUPER_MAGIC || status.st_ino != kProcRoot) continue;
    return slash + 1 == path.size() || (path[slash + 1] >= '0' && path[slash + 1] <= '9');
  }
  struct stat status {};
  return ::fstat(fd, &status) != 0 || status.st_ino != kProcRoot;  // the directory of all, or not to be told
}

UniqueFd open_saved(int root, const std::string& path, int flags, unsigned mode) {
  const bool unnamed = (flags & O_TMPFILE) == O_TMPFILE, new_one = unnamed || (flags & O_CREAT) != 0;
  UniqueFd found = open_below(root, new_one && !unnamed ? directory_of(path) : path,
                              new_one ? O_PATH | O_DIRECTORY : O_PATH | (flags & (O_NOFOLLOW | O_DIRECTORY)));
  struct stat status {};
  if (!found || ::fstat(found.get(), &status) != 0) return {};
  const bool openable = S_ISREG(status.st_mode) || S_ISDIR(status.st_mode) || S_ISLNK(status.st_mode);
  if (!keeps_files(found.get()) || (!openable && (flags & O_PATH) == 0)) {
    errno = ENOTSUP;
    return {};
  }
  if (unnamed) return UniqueFd(::openat(found.get(), ".", flags | O_CLOEXEC, mode));
  if (new_one)
    return UniqueFd(::openat(found.get(), last_name_of(path).c_str(), flags | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
  if ((flags & O_PATH) != 0) return found;
  // Through the descriptor: what is opened is what was looked at. A link that was not to be followed is refused here.
  return UniqueFd(::open(fmt::format("/proc/self/fd/{}", found.get()).c_str(),
                         (flags & ~O_NOFOLLOW) | O_NOCTTY | O_NONBLOCK | O_CLOEXEC));
}

}  // namespace icp
