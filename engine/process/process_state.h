// SPDX-License-Identifier: GPL-2.0-or-later
// Everything about stopped processes but their memory and files: the resources of this folder, one after the other.
#pragma once

#include <vector>

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// states[i], started by describe_tree(), belongs to processes[i]; zombies have nothing more. Calls are made in all
// threads of all processes, side by side, after which all are as they were stopped. Before the memory is looked at: the
// calls let the kernel write to it (rseq).
void capture_process_state(std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states);

}  // namespace icp
