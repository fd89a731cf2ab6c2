// SPDX-License-Identifier: GPL-2.0-or-later
// System V message queues with the messages in them.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/sysv/ipc_list.h"
#include "engine/sysv/ipc_namespace.h"

namespace icp {

// True when this kernel can show messages without taking them (MSG_COPY, needs CONFIG_CHECKPOINT_RESTORE).
bool can_copy_messages();

// False when the queue is gone meanwhile. Leaves all messages where they are. Throws kRefused when there are messages
// and the kernel cannot show them.
bool capture_queue(const IpcObject& object, pb::MessageQueue& queue);

// Throws kImage when the queues are not such as this host could hold.
void check_queues(const pb::SysvIpc& state, const IpcLimits& limits);
// Makes the queue with its messages; returns its id.
int create_queue(const pb::MessageQueue& queue, uid_t uid, gid_t gid);

}  // namespace icp
