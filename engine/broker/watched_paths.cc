// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/broker/watched_paths.h"

#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"

namespace icp::privileged {
namespace {

constexpr size_t kMostText = 16 << 20;   // of fdinfo or mountinfo, in bytes
constexpr size_t kMostOpened = 1 << 16;  // mount points, of which a user's namespace has as many as the user likes

std::string read_below(int process, const std::string& name) {
  const UniqueFd fd(::openat(process, name.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) throw_errno("cannot open {} of a process", name);
  std::string text;
  std::array<char, 65536> buffer;
  ssize_t got = 0;
  while (text.size() < kMostText && (got = ::read(fd.get(), buffer.data(), buffer.size())) > 0)
    text.append(buffer.data(), static_cast<size_t>(got));
  return text;
}

}  // namespace

// "inotify wd:5 ino:1 sdev:fe00000 mask:4000fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:4e015100..."
bool parse_watch(const std::string& line, Watch& watch) {
  unsigned dev = 0, bytes = 0, type = 0;
  if (std::sscanf(line.c_str(),
                  "inotify wd:%x ino:%*x sdev:%x mask:%*x ignored_mask:%*x fhandle-bytes:%x fhandle-type:%x",
                  reinterpret_cast<unsigned*>(&watch.wd), &dev, &bytes, &type) != 4)
    return false;
  const size_t at = line.find("f_handle:");
  if (at == std::string::npos || bytes > MAX_HANDLE_SZ || line.size() < at + 9 + 2 * size_t{bytes}) return false;
  for (size_t i = 0; i < bytes; ++i) {
    unsigned byte = 0;
    if (std::sscanf(line.c_str() + at + 9 + 2 * i, "%2x", &byte) != 1) return false;
    watch.handle.bytes[i] = static_cast<unsigned char>(byte);
  }
  watch.handle.header.handle_bytes = bytes;
  watch.handle.header.handle_type = static_cast<int>(type);
  watch.major = dev >> 20;  // MKDEV() of the kernel
  watch.minor = dev & 0xfffff;
  return true;
}

namespace {

// The mount point is the user's: it may be a device or a FIFO by now, or lead elsewhere by a link.
UniqueFd open_mount(int root, const std::string& point) {
  open_how how{};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS;
  const UniqueFd found(static_cast<int>(::syscall(SYS_openat2, root, point.c_str(), &how, sizeof how)));
  struct stat status {};
  if (!found || ::fstat(found.get(), &status) != 0 || !(S_ISDIR(status.st_mode) || S_ISREG(status.st_mode))) return {};
  return UniqueFd(
      ::open(fmt::format("/proc/self/fd/{}", found.get()).c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

std::string path_of(int mount_fd, FileHandle& handle) {
  const UniqueFd file(::open_by_handle_at(mount_fd, &handle.header, O_PATH | O_CLOEXEC));
  if (!file) return {};
  std::array<char, PATH_MAX> path;
  const ssize_t length = ::readlink(fmt::format("/proc/self/fd/{}", file.get()).c_str(), path.data(), path.size());
  return length > 0 ? std::string(path.data(), static_cast<size_t>(length)) : std::string();
}

}  // namespace

std::map<int, std::string> watched_paths(int process, int fd) {
  const std::string text = read_below(process, fmt::format("fdinfo/{}", fd));
  const std::vector<MountEntry> mounts = MountEntry::parse(read_below(process, "mountinfo"));
  const UniqueFd root(::openat(process, "root", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root) throw_errno("cannot open the root directory of a process");
  std::map<int, std::string> paths;
  size_t opened = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    Watch watch;
    if (!parse_watch(line, watch)) continue;
    for (const MountEntry& mount : mounts) {
      if (mount.dev_major != watch.major || mount.dev_minor != watch.minor) continue;
      if (++opened > kMostOpened) return paths;
      const UniqueFd at = open_mount(root.get(), mount.point);
      if (!at) continue;
      std::string path = path_of(at.get(), watch.handle);
      // The root of the mount alone is where a name that the kernel has forgotten seems to lie.
      if (path.empty()) continue;
      const bool better = path != "/" && path != mount.point;
      if (better || paths.count(watch.wd) == 0) paths[watch.wd] = std::move(path);
      if (better) break;
    }
  }
  return paths;
}

}  // namespace icp::privileged
