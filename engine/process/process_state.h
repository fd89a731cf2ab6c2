// SPDX-License-Identifier: GPL-2.0-or-later
// Everything about a stopped process but its memory and files: the resources of this folder, one after the other.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// `state` has been started by describe_tree(). Makes scratch memory in the process and takes it away again.
void capture_process_state(StoppedProcess& process, pb::Process& state);

}  // namespace icp
