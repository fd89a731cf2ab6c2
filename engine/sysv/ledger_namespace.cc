// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/ledger_namespace.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/sysv/ipc_namespace.h"

namespace icp {
namespace {

constexpr long kNsfsMagic = 0x6e736673;  // include/uapi/linux/magic.h

bool is_namespace(int fd) {
  struct statfs info {};
  return ::fstatfs(fd, &info) == 0 && info.f_type == kNsfsMagic;
}

}  // namespace

UniqueFd open_pinned_namespace(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd && errno != ENOENT) throw_errno("cannot open {}", path);
  if (fd && !is_namespace(fd.get())) fd.reset();
  return fd;
}

void make_pinned_namespace(const std::string& path) {
  if (!UniqueFd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600))) {
    throw_errno("cannot make {}", path);
  }
  const UniqueFd old = current_ipc_namespace();
  const IpcLimits limits = IpcLimits::read();
  if (::unshare(CLONE_NEWIPC) != 0) throw_errno("cannot make an IPC namespace");
  try {
    limits.apply();
    if (::mount("/proc/thread-self/ns/ipc", path.c_str(), nullptr, MS_BIND, nullptr) != 0) {
      throw_errno("cannot pin the job's IPC namespace on {}", path);
    }
  } catch (...) {
    // A thread with the right to unshare may also return; if not, it stays in a namespace that nobody else has.
    static_cast<void>(!::setns(old.get(), CLONE_NEWIPC));
    throw;
  }
}

void remove_pin(const std::string& path) {
  // More than one when mounts are propagated in a circle; ends with EINVAL (not a mount) or ENOENT.
  constexpr int kMostPins = 64;
  for (int i = 0; i < kMostPins && ::umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0; ++i) {
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw_errno("cannot remove {}", path);
}

bool namespace_in_use(uint64_t inode) {
  const std::vector<pid_t> processes = list_processes();
  return std::any_of(processes.begin(), processes.end(), [inode](pid_t pid) {
    struct stat info {};
    return ::stat(fmt::format("/proc/{}/ns/ipc", pid).c_str(), &info) == 0 && info.st_ino == inode;
  });
}

}  // namespace icp
