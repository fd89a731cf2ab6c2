// SPDX-License-Identifier: GPL-2.0-or-later
// Resource limits (getrlimit(2)): capture and restore.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/trace/call_batch.h"

namespace icp {

void capture_limits(CallBatch& calls, pb::Process& state);
// Raises RLIMIT_NOFILE so that descriptors find their numbers again; before any is installed.
void widen_descriptor_limit(RemoteProcess& remote, const pb::Process& state);
// A hard limit above what the new step has is left at the step's: raising it would need CAP_SYS_RESOURCE.
void restore_limits(RemoteProcess& remote, const pb::Process& state);

}  // namespace icp
