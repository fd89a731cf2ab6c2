// SPDX-License-Identifier: GPL-2.0-or-later
// What a batch script that is checkpointed finds as srun. srun itself has connections with Slurm's daemons and cannot
// be saved; what stands in for it can. It asks the step's agent to have srun called outside of what is saved
// (launcher.h), waits for its end, and ends the same way. After a restart the agent calls srun again.
//
// A call that starts no daemons of an MPI launcher goes to srun at once.
#pragma once

namespace icp::launch {

// In the environment of the script: the name of the agent's abstract Unix socket, and the directory that holds this
// program under the name srun.
inline constexpr const char* kSocketVariable = "ICP_LAUNCH_SOCKET";
inline constexpr const char* kPathVariable = "ICP_LAUNCH_PATH";
// In that of a step that was started so: its number.
inline constexpr const char* kNumberVariable = "ICP_LAUNCHED";

// The program `srun`; returns its exit status, or becomes srun.
int stand_in_for_srun(int argc, char** argv);

}  // namespace icp::launch
