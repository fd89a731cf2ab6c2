// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/ipc_namespace.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#ifndef NSFS_MAGIC
#define NSFS_MAGIC 0x6e736673
#endif

namespace icp::spank {
namespace {

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

std::string failure(const std::string& what) { return what + ": " + std::strerror(errno); }

// Limits of the administrator hold for each namespace by itself: a new one starts with the kernel's defaults.
constexpr std::array kLimits = {"/proc/sys/kernel/shmmax", "/proc/sys/kernel/shmall", "/proc/sys/kernel/shmmni",
                                "/proc/sys/kernel/sem",    "/proc/sys/kernel/msgmax", "/proc/sys/kernel/msgmnb",
                                "/proc/sys/kernel/msgmni"};
using Limits = std::array<std::string, kLimits.size()>;

Limits read_limits() {
  Limits limits;
  for (size_t i = 0; i < kLimits.size(); i++) {
    const Fd file(::open(kLimits[i], O_RDONLY | O_CLOEXEC));
    char buffer[256];
    const ssize_t got = file.get() < 0 ? 0 : ::read(file.get(), buffer, sizeof buffer);
    if (got > 0) limits[i].assign(buffer, static_cast<size_t>(got));
  }
  return limits;
}

void write_limits(const Limits& limits) {
  const Limits now = read_limits();
  for (size_t i = 0; i < kLimits.size(); i++) {
    if (limits[i].empty() || limits[i] == now[i]) continue;
    const Fd file(::open(kLimits[i], O_WRONLY | O_CLOEXEC));
    // A limit that cannot be set is no reason to keep the job from running.
    if (file.get() >= 0 && ::write(file.get(), limits[i].data(), limits[i].size()) < 0) errno = 0;
  }
}

bool is_pinned(int fd) {
  struct statfs facts {};
  return ::fstatfs(fd, &facts) == 0 && static_cast<unsigned long>(facts.f_type) == NSFS_MAGIC;
}

std::string make_namespace(const std::string& pin) {
  const Fd own(::open("/proc/thread-self/ns/ipc", O_RDONLY | O_CLOEXEC));
  if (own.get() < 0) return failure("cannot open slurmstepd's own IPC namespace");
  const Limits limits = read_limits();
  if (::unshare(CLONE_NEWIPC) != 0) return failure("cannot make an IPC namespace");
  write_limits(limits);
  if (::mount("/proc/thread-self/ns/ipc", pin.c_str(), nullptr, MS_BIND, nullptr) == 0) return {};
  std::string text = failure("cannot pin the IPC namespace on " + pin);
  // Back to where all others are: one step alone in a namespace that nobody else can join would be worse than none.
  if (::setns(own.get(), CLONE_NEWIPC) != 0) text += failure("; and cannot leave it");
  return text;
}

}  // namespace

std::string make_job_directory(const std::string& job_dir) {
  for (size_t slash = job_dir.find('/', 1); slash != std::string::npos; slash = job_dir.find('/', slash + 1)) {
    ::mkdir(job_dir.substr(0, slash).c_str(), 0755);
  }
  if (::mkdir(job_dir.c_str(), 0700) == 0 || errno == EEXIST) return {};
  return failure("cannot make " + job_dir);
}

std::string enter_job_namespace(const std::string& job_dir) {
  if (std::string problem = make_job_directory(job_dir); !problem.empty()) return problem;
  const std::string lock = job_dir + "/lock", pin = job_dir + "/ipc";
  // Two steps may start at once: the lock decides which of them makes the namespace.
  const Fd held(::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (held.get() < 0) return failure("cannot open " + lock);
  while (::flock(held.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return failure("cannot lock " + lock);
  }
  const Fd file(::open(pin.c_str(), O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (file.get() < 0) return failure("cannot open " + pin);
  if (!is_pinned(file.get())) return make_namespace(pin);
  if (::setns(file.get(), CLONE_NEWIPC) != 0) return failure("cannot join the job's IPC namespace " + pin);
  return {};
}

}  // namespace icp::spank
