// SPDX-License-Identifier: GPL-2.0-or-later
// Resource limits (getrlimit(2)): capture and restore.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/trace/call_batch.h"

namespace icp {

// Processor time is counted from 0 after a restart: of RLIMIT_CPU, what is left of it is saved.
void capture_limits(const StoppedProcess& process, CallBatch& calls, pb::Process& state);
// Raises RLIMIT_NOFILE so that descriptors find their numbers again; before any is installed.
void widen_descriptor_limit(RemoteProcess& remote, const pb::Process& state);
// A hard limit above what the new step has is left at the step's: raising it would need CAP_SYS_RESOURCE.
void restore_limits(RemoteProcess& remote, const pb::Process& state);

}  // namespace icp
