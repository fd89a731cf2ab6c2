// SPDX-License-Identifier: GPL-2.0-or-later
// System V semaphore sets: owners, keys, values. What processes would undo at their end is in sem_undo.h.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/sysv/ipc_list.h"
#include "engine/sysv/ipc_namespace.h"

namespace icp {

inline constexpr int kSemaphoreMax = 32767;  // SEMVMX, the highest value (include/uapi/linux/sem.h)

// False when the set is gone meanwhile.
bool capture_semaphores(const IpcObject& object, pb::SemaphoreSet& set);

// Throws kImage when the sets, or the adjustments of the processes, are not such as this host could hold.
void check_semaphores(const pb::Capsule& capsule, const IpcLimits& limits);
// Makes the set with its values; returns its id.
int create_semaphores(const pb::SemaphoreSet& set, uid_t uid, gid_t gid);

}  // namespace icp
