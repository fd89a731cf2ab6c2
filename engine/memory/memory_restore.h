// SPDX-License-Identifier: GPL-2.0-or-later
// Page stores of a version back into processes.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/identity.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image.pb.h"
#include "engine/image/image_dir.h"
#include "engine/restore/tree_plan.h"
#include "engine/sysv/sysv_ipc.h"
#include "engine/trace/remote_process.h"

namespace icp {

class IpcAccess;
class LazyFill;

struct MemoryRestoreOptions {
  Identity identity;        // files are opened with these rights
  int root_fd = -1;         // O_PATH of the capsule's root directory
  int agent_socket = -1;    // the agent's end of the socket every restored process has inherited ...
  int process_socket = -1;  // ... and its number in the processes (for RemoteProcess::send_fd)
  int seed_socket = -1;     // the same while the tree grows
  const RestoredSysv* sysv = nullptr;
  IpcAccess* ipc = nullptr;   // where these objects are
  bool keep_changed = false;  // files that were only saved because they were open stay as they are, if they are there
  bool dry = false;           // see RestoreOptions; apply_side_effects() is not called then
  LazyFill* lazy = nullptr;   // private anonymous memory comes after the processes run
};

// One agent thread only. All hostile numbers (addresses, lengths, offsets, object ids) are checked before
// anything is mapped.
class MemoryRestore {
 public:
  MemoryRestore(const VersionReader& version, const pb::Capsule& capsule, MemoryRestoreOptions options);
  ~MemoryRestore();

  // Throws kImage / kSystem with the path for anything that cannot work on this host: mapped files missing or
  // changed (size, mtime), mappings outside the address space or overlapping, another vdso.
  void check() const;
  // Makes memfds, shared anonymous memory, deleted files and System V contents.
  // Files that exist (shared file mappings, /dev/shm) get their saved content in apply_side_effects().
  void create_objects();
  UniqueFd open_object(uint32_t object, uint32_t flags);
  // Files that were gone and are made again, by device and inode at the checkpoint.
  std::set<std::pair<uint64_t, uint64_t>> remade() const;

  // Between check() and the first map_process(), while the tree grows by `steps`: pages that relatives share.
  void plan_sharing(const std::vector<TreeStep>& steps);
  void seed(uint32_t pid, RemoteProcess& remote);
  void end_seeding(RemoteProcess& init);

  // Replaces the whole address space of a seed process, in three steps: map_process() for each, fill_pages() for all
  // together, finish_process() for each. On entry `remote` runs system calls through an instruction of the seed; after
  // map_process() through a trampoline page (with scratch) that is the only thing left of ours and lies in a hole of
  // the new layout; remove_trampoline() unmaps it as the very last remote call. `remote` and `process` stay where they
  // are. The process needs CAP_CHECKPOINT_RESTORE, which PR_SET_MM_MAP asks for.
  struct Trampoline {
    uint64_t start = 0, size = 0;
  };
  Trampoline map_process(RemoteProcess& remote, const pb::Process& process);
  void fill_pages();
  void finish_process(const pb::Process& process);
  static void remove_trampoline(RemoteProcess& remote, Trampoline trampoline);

  void apply_side_effects();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace icp
