// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include "coordinator/protocol/packet.h"
#include "spank/slurm_api.h"

namespace icp::spank {

// In a task of a batch script, before its exec: starts the launcher that the agent wants beside it (launch/launcher.h),
// and lets the script find the stand-in for srun. Closes the answer's descriptors. Does nothing when it wants none.
void start_launcher(spank_t handle, protocol::Packet& answer);

}  // namespace icp::spank
