// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/image_path.h"

#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <string>
#include <string_view>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/file_systems.h"
#include "engine/base/procfs.h"
#include "engine/base/times.h"

namespace icp {
namespace {

const char* type_name(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG:
      return "a regular file";
    case S_IFDIR:
      return "a directory";
    case S_IFCHR:
      return "a character device";
    case S_IFBLK:
      return "a block device";
    case S_IFIFO:
      return "a FIFO";
    case S_IFSOCK:
      return "a socket";
    default:
      return "something else";
  }
}

constexpr uint32_t kOpenFlags =
    O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC | O_SYNC | O_DIRECT | O_LARGEFILE | O_NOATIME | O_DIRECTORY;

}  // namespace

// What the kernel makes up may be looked at where a program had it open for that.
static bool is_view(const RestoreContext& context, const pb::OpenFile& file, const FoundPath& found) {
  const bool looks = (file.flags() & O_PATH) != 0 || (file.flags() & O_ACCMODE) == O_RDONLY;
  const bool fits = S_ISDIR(found.stat.st_mode) || (S_ISREG(found.stat.st_mode) && looks);
  return fits && !is_about_a_process(context.options.root_fd, found.fd.get());
}

static void check_file_system(const RestoreContext& context, const pb::OpenFile& file, const std::string& path,
                              const FoundPath& found) {
  const FileSystemKind kind = file_system_kind(found.fd.get());
  if (kind == FileSystemKind::kFiles) return;
  if (kind == FileSystemKind::kViews && is_view(context, file, found)) return;
  throw_bad_file(file, refused_file_system(path, found.fd.get()));
}

std::optional<FoundPath> look_up(const RestoreContext& context, const pb::OpenFile& file, const std::string& path) {
  if (!is_usable_path(path)) throw_bad_file(file, "it has no usable path");
  FoundPath found;
  {
    const FsIdentity as_user(context.options.identity);
    const int directory = file.has_directory() ? O_DIRECTORY : 0;  // which an automounter waits for
    found.fd = open_below(context.options.root_fd, path, O_PATH | directory);
    if (!found.fd && errno == ENOENT) return {};
    if (!found.fd) throw_errno("cannot find {}, which was open at the checkpoint", path);
  }
  if (::fstat(found.fd.get(), &found.stat) != 0) throw_errno("cannot look at {}", path);
  check_file_system(context, file, path, found);
  return found;
}

// Device numbers of major 0 (network file systems, btrfs, overlays) are given anew at each mount.
bool same_inode(const struct stat& now, const pb::FileIdentity& then) {
  return now.st_ino == then.ino() && (now.st_dev == then.dev() || (major(now.st_dev) == 0 && major(then.dev()) == 0));
}

FoundPath find_image_path(const RestoreContext& context, const pb::OpenFile& file, mode_t type) {
  std::optional<FoundPath> known = look_up(context, file, file.identity().path());
  if (!known) {
    errno = ENOENT;
    throw_errno("cannot find {}, which was open at the checkpoint", file.identity().path());
  }
  FoundPath found = std::move(*known);
  if ((found.stat.st_mode & S_IFMT) != type) {
    throw_bad_file(
        file, fmt::format("it was {} at the checkpoint and is {} now", type_name(type), type_name(found.stat.st_mode)));
  }
  return found;
}

bool is_own_file(const RestoreContext& context, const FoundPath& found) {
  return S_ISREG(found.stat.st_mode) && found.stat.st_uid == context.options.identity.uid;
}

UniqueFd open_found(const RestoreContext& context, const pb::OpenFile& file, const FoundPath& found, int extra) {
  if (file.flags() & O_PATH) {
    UniqueFd fd(::fcntl(found.fd.get(), F_DUPFD_CLOEXEC, 0));
    if (!fd) throw_errno("cannot open {}", image_file_name(file));
    return fd;
  }
  const int flags = static_cast<int>(file.flags() & kOpenFlags) | extra | O_CLOEXEC | O_NOCTTY;
  // Through the descriptor: the file opened is the one that was looked at.
  const std::string path = fmt::format("/proc/self/fd/{}", found.fd.get());
  const FsIdentity as_user(context.options.identity);
  UniqueFd fd(::open(path.c_str(), flags));
  if (!fd && errno == EACCES && is_own_file(context, found)) {
    // Its mode has been changed since the program opened it, or did not let it do that then (git makes packs so).
    const mode_t mode = found.stat.st_mode & 07777;
    if (::chmod(path.c_str(), mode | S_IRUSR | S_IWUSR) != 0)
      throw_errno("cannot open {} again", image_file_name(file));
    fd.reset(::open(path.c_str(), flags));
    const int error = errno;
    if (::chmod(path.c_str(), mode) != 0) throw_errno("cannot set the mode of {} again", image_file_name(file));
    errno = error;
  }
  if (!fd) throw_errno("cannot open {} again", image_file_name(file));
  return fd;
}

void seek_to_position(const pb::OpenFile& file, int fd) {
  if (file.flags() & O_PATH) return;
  if (file.position() > static_cast<uint64_t>(INT64_MAX)) throw_bad_file(file, "its position is out of range");
  if (::lseek(fd, static_cast<off_t>(file.position()), SEEK_SET) < 0) {
    throw_errno("cannot go back to position {} of {}", file.position(), image_file_name(file));
  }
}

// Another hard link in the same directory.
static bool find_other_name(FileScan& scan, Description& description) {
  std::string path = description.target;
  if (path.ends_with(kDeleted)) path.resize(path.size() - kDeleted.size());
  const UniqueFd root = open_root_of(scan.processes()[description.uses.front().process].pid);
  if (!root) return false;
  const std::vector<std::string> names = names_in_directory(root.get(), directory_of(path), description.stat);
  if (names.empty()) return false;
  description.target = directory_of(path) + names.front();
  return true;
}

bool path_leads_back(FileScan& scan, Description& description) {
  if (known_file_system(scan.filesystem(description)) == FileSystemKind::kOther) {
    const int fd = scan.take(description);
    if (fd < 0) return false;
    if (file_system_kind(fd) == FileSystemKind::kOther) {
      scan.refuse(description, refused_file_system(description.target, fd), "close it before a checkpoint");
      return false;
    }
  }
  struct stat now {};
  const int error = scan.stat_path(description.uses.front().process, description.target, now);
  if (error == 0 && now.st_dev == description.stat.st_dev && now.st_ino == description.stat.st_ino) return true;
  if (description.stat.st_nlink > 0 && find_other_name(scan, description)) return true;
  const std::string why = error == 0 ? "another file has taken its name" : "its name is gone";
  scan.refuse(description,
              fmt::format("{} was removed, renamed or replaced since it was opened ({})", description.target, why),
              "close it, or keep its name as long as it is open");
  return false;
}

void capture_identity(Description& description) {
  pb::FileIdentity& identity = *description.message->mutable_identity();
  const struct stat& st = description.stat;
  identity.set_path(description.target);
  identity.set_dev(st.st_dev);
  identity.set_ino(st.st_ino);
  identity.set_size(static_cast<uint64_t>(st.st_size));
  identity.set_mtime_ns(nanoseconds(st.st_mtim));
  identity.set_mode(st.st_mode);
}

}  // namespace icp
