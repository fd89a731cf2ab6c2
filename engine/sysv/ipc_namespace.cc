// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/ipc_namespace.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "engine/base/error.h"

namespace icp {
namespace {

// /proc/sys/kernel shows the namespace of the thread that opens the file.
std::string limit_path(const char* name) { return std::string("/proc/sys/kernel/") + name; }

template <typename... Values>
void read_limit(const char* name, Values&... values) {
  std::ifstream in(limit_path(name));
  (in >> ... >> values);
  if (!in) throw_error(ErrorKind::kSystem, "cannot read {}", limit_path(name));
}

}  // namespace

UniqueFd open_ipc_namespace(pid_t pid) {
  UniqueFd fd(::open(fmt::format("/proc/{}/ns/ipc", pid).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd && errno == ENOENT) throw_error(ErrorKind::kGone, "process {} has ended", pid);
  if (!fd) throw_errno("cannot open the IPC namespace of process {}", pid);
  return fd;
}

UniqueFd current_ipc_namespace() {
  UniqueFd fd(::open("/proc/thread-self/ns/ipc", O_RDONLY | O_CLOEXEC));
  if (!fd) throw_errno("cannot open the agent's IPC namespace /proc/thread-self/ns/ipc");
  return fd;
}

uint64_t ipc_namespace_inode(int namespace_fd) {
  struct stat info {};
  if (::fstat(namespace_fd, &info) != 0) throw_errno("cannot look at an IPC namespace");
  return info.st_ino;
}

IpcNamespaceScope::IpcNamespaceScope(int namespace_fd) : old_(current_ipc_namespace()) {
  if (::setns(namespace_fd, CLONE_NEWIPC) != 0) throw_errno("cannot enter the IPC namespace of the job");
}

IpcNamespaceScope::~IpcNamespaceScope() {
  if (::setns(old_.get(), CLONE_NEWIPC) == 0) return;
  std::perror("slurm-icp: cannot go back to the agent's own IPC namespace, giving up");
  std::abort();
}

IpcLimits IpcLimits::read() {
  IpcLimits limits;
  read_limit("shmmax", limits.shm_max_bytes);
  read_limit("shmall", limits.shm_all_pages);
  read_limit("shmmni", limits.shm_count);
  read_limit("sem", limits.sem_per_set, limits.sem_total, limits.sem_ops, limits.sem_sets);
  read_limit("msgmax", limits.msg_max_bytes);
  read_limit("msgmnb", limits.msg_queue_bytes);
  read_limit("msgmni", limits.msg_queues);
  return limits;
}

std::vector<std::pair<std::string, std::string>> IpcLimits::as_files() const {
  return {{limit_path("shmmax"), std::to_string(shm_max_bytes)},
          {limit_path("shmall"), std::to_string(shm_all_pages)},
          {limit_path("shmmni"), std::to_string(shm_count)},
          {limit_path("sem"), fmt::format("{} {} {} {}", sem_per_set, sem_total, sem_ops, sem_sets)},
          {limit_path("msgmax"), std::to_string(msg_max_bytes)},
          {limit_path("msgmnb"), std::to_string(msg_queue_bytes)},
          {limit_path("msgmni"), std::to_string(msg_queues)}};
}

void IpcLimits::apply() const {
  for (const auto& [path, text] : as_files()) {
    UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (fd) static_cast<void>(!::write(fd.get(), text.data(), text.size()));
  }
}

}  // namespace icp
