// SPDX-License-Identifier: GPL-2.0-or-later
// IPC namespaces (ipc_namespaces(7)) and the limits that each of them has of its own.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/unique_fd.h"

namespace icp {

// Enters an IPC namespace with the calling thread and goes back in its destructor. Needs CAP_SYS_ADMIN. Aborts the
// process if the way back is barred, as whatever came next would hit the wrong namespace's objects.
class IpcNamespaceScope {
 public:
  explicit IpcNamespaceScope(int namespace_fd);
  ~IpcNamespaceScope();
  IpcNamespaceScope(const IpcNamespaceScope&) = delete;
  IpcNamespaceScope& operator=(const IpcNamespaceScope&) = delete;

 private:
  UniqueFd old_;
};

// The namespace of a process. kGone when that has ended.
UniqueFd open_ipc_namespace(pid_t pid);
// The calling thread's namespace. (/proc/self is the process's first thread, which may be in another one.)
UniqueFd current_ipc_namespace();
// The inode number that tells namespaces apart, for a descriptor of one.
uint64_t ipc_namespace_inode(int namespace_fd);

// System V limits of the calling thread's namespace (proc(5), /proc/sys/kernel). A new namespace starts with the
// kernel's defaults, not with what the administrator set, so whoever makes one copies them over.
struct IpcLimits {
  uint64_t shm_max_bytes = 0;    // shmmax: one segment
  uint64_t shm_all_pages = 0;    // shmall: all segments
  uint64_t shm_count = 0;        // shmmni
  uint64_t sem_per_set = 0;      // sem[0], SEMMSL
  uint64_t sem_total = 0;        // sem[1], SEMMNS
  uint64_t sem_ops = 0;          // sem[2], SEMOPM: operations in one semop()
  uint64_t sem_sets = 0;         // sem[3], SEMMNI
  uint64_t msg_max_bytes = 0;    // msgmax: one message
  uint64_t msg_queue_bytes = 0;  // msgmnb: one queue
  uint64_t msg_queues = 0;       // msgmni

  static IpcLimits read();
  // Writes them to the calling thread's namespace; a value the kernel does not take is left as it was.
  void apply() const;
  // The same as files and what to write into each.
  std::vector<std::pair<std::string, std::string>> as_files() const;
  friend bool operator==(const IpcLimits&, const IpcLimits&) = default;
};

}  // namespace icp
