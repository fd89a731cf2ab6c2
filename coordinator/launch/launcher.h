// SPDX-License-Identifier: GPL-2.0-or-later
// Beside a batch script that is checkpointed, and no part of what is saved: calls srun for its stand-ins (stand_in.h),
// as a process of the job with the limits, cgroup and environment that the script was started with. It ends when the
// agent closes its socket, and ends what it has started then.
#pragma once

namespace icp::launch {

// icp-proxy launch CONTROL OUTPUT: `control` is the socket to the agent, `output` the script's stderr, where srun
// writes.
//
// control, agent -> launcher
//   launch   number, checkpoint_dir, restart_dir ("none": a fresh step); fd 0: the encoded Request
//   signal   number, signal
// launcher -> agent
//   launched    pid: the launcher's own, at its start
//   launch-end  number, status: of wait(2)
int launch_steps(int control, int output);

}  // namespace icp::launch
