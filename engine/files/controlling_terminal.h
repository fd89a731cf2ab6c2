// SPDX-License-Identifier: GPL-2.0-or-later
// Which terminal controls the processes of a session, and which of its groups has the foreground.
#pragma once

#include <vector>

#include "engine/files/file_scan.h"
#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Fills process.terminal of the given messages (in the order of `processes`), where that is a pseudo terminal of the
// capsule or one that a task was started on. Terminals of sessions outside are not the capsule's. At capture, when the
// descriptions have their kinds.
void capture_controlling_terminals(FileScan& scan, const std::vector<StoppedProcess>& processes,
                                   const std::vector<pb::Process*>& states);

}  // namespace icp
