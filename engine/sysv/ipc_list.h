// SPDX-License-Identifier: GPL-2.0-or-later
// Which System V objects there are, whose they are, and their removal.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace icp {

enum class IpcKind { kShm, kSem, kMsg };
std::string_view to_string(IpcKind kind);  // "shm", "sem", "msg"

// One object as the kernel lists it in /proc/sysvipc, in the calling thread's namespace.
struct IpcObject {
  IpcKind kind{};
  int32_t key = 0;
  int id = 0;
  uid_t uid = 0, cuid = 0;
  gid_t gid = 0, cgid = 0;
  uint32_t mode = 0;      // permission bits only
  uint64_t size = 0;      // bytes (shm), semaphores (sem), bytes queued (msg)
  uint64_t attached = 0;  // shm: number of attaches
  uint64_t messages = 0;  // msg: messages queued
  pid_t creator = 0;      // shm: cpid; else 0, the kernel does not keep it
  pid_t last = 0;         // shm: lpid; msg: lspid, or lrpid when that was later; sem: 0, see semaphore_users()
  pid_t last_sender = 0, last_receiver = 0;  // msg
  int64_t create_time = 0;                   // unix seconds (ctime: creation or the last IPC_SET)
  int64_t attach_time = 0, detach_time = 0;  // shm
  bool removed = false;                      // shm: marked for removal (SHM_DEST); its key is then 0
  bool locked = false;                       // shm: SHM_LOCK
};

// All objects of the calling thread's namespace: segments, semaphore sets, queues, each by id.
std::vector<IpcObject> list_ipc_objects();
// The rows of one /proc/sysvipc file; rows that do not parse are left out.
std::vector<IpcObject> parse_ipc_list(IpcKind kind, std::string_view text);
// The processes that last changed each semaphore of a set (semctl GETPID), 0 left out. Empty when it is gone.
std::set<pid_t> semaphore_users(const IpcObject& object);

// "shm key 0x000004d2 id 3 size 1048576 creator pid 4711"; sem and msg name the creator's uid.
std::string describe(const IpcObject& object);

// Whose objects belong to the capsule.
struct SysvScope {
  bool whole_namespace = false;  // the namespace is the job's own
  std::set<pid_t> pids;          // else: creators and users, pids as the namespace's /proc/sysvipc shows them
  std::set<int> attached_ids;    // else: segments that the processes map
  uid_t uid = 0;                 // else: owner
  int64_t since = 0;             // else: created at or after this time (unix seconds)
};

// Objects to capture, in the calling thread's namespace. In a namespace of the job: all. Else (`ipc: host`): segments
// the processes map, whoever made them, since they cannot be rebuilt without; and objects of the user from the job's
// time that a process of the job made (shm) or that nobody else is known to have used (sem, msg: the kernel does not
// keep their creator). Generous on purpose: use the ledger, not this, to decide what to remove.
std::vector<IpcObject> select_objects(const SysvScope& scope);

// Removes objects (IPC_RMID) in the calling thread's namespace; an object gone meanwhile is no error, nor is a
// segment that is already marked. Returns those removed; failures go to `problems`, or are thrown without it.
std::vector<IpcObject> remove_ipc_objects(const std::vector<IpcObject>& objects,
                                          std::vector<std::string>* problems = nullptr);

}  // namespace icp
