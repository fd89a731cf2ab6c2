// SPDX-License-Identifier: GPL-2.0-or-later
// System V IPC of a capsule: capture and restore. All of it works on the IPC namespace of the calling thread.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

#include "engine/base/finding.h"
#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/sysv/ipc_list.h"
#include "engine/sysv/ipc_namespace.h"
#include "engine/sysv/shm.h"

namespace icp {

// What of the objects cannot be captured: messages, on a kernel that cannot show them.
void check_sysv(const std::vector<IpcObject>& objects, Findings& findings);

// Fills `state` (all but ShmSegment.object and contents of segments, which the memory module owns). The
// processes that may touch the objects must be stopped. Objects gone since they were listed are left out.
void capture_sysv(const std::vector<IpcObject>& objects, pb::SysvIpc& state);

// Undo values (SEM_UNDO) of the processes, found by asking the kernel in each of them (see sem_undo.h); nothing is
// changed by it. Fills process.sem_undo. Scratch memory of 64 KiB is enough. Throws kGone when a process is killed
// meanwhile: the kernel has then applied its adjustments, so values captured before do not fit any more.
void capture_sem_undo(std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states,
                      const pb::SysvIpc& state);

// New ids by old ids.
struct RestoredSysv {
  using Ids = std::vector<std::pair<int, int>>;  // old, new
  Ids shm_ids, sem_ids, msg_ids;
  // Throw kImage for an id that is not in the image.
  int shm_id(int old_id) const;
  int sem_id(int old_id) const;
  // One sentence for each object that could not have its old id; a program that keeps ids will miss it.
  std::vector<std::string> changed_ids() const;
};

// Makes all objects of an image in the calling thread's (fresh) namespace, with keys, modes and, where the kernel
// lets us (/proc/sys/kernel/*_next_id), ids. Owner and creator are `uid` and `gid`, whatever the image says. Segments
// are empty; those marked for removal are removed by finish_sysv(), when all have attached. Checks everything first:
// kImage for hostile or unfit values means that nothing was made. On a later error, what was made is removed.
//
// Limits are those of the namespace: copy the host's with IpcLimits after making one.
RestoredSysv restore_sysv(const pb::Capsule& capsule, uid_t uid, gid_t gid);
// Gives one process its undo adjustments, by semop(SEM_UNDO) in it; the values stay as they are, so order does not
// matter. Before or after its threads are made (with CLONE_SYSVSEM). While the process is still root, or as a user
// who may write to the set.
void restore_sem_undo(RemoteProcess& remote, const pb::Process& process, const RestoredSysv& restored);
// Marks segments for removal that were so in the image.
void finish_sysv(const pb::Capsule& capsule, const RestoredSysv& restored);

}  // namespace icp
