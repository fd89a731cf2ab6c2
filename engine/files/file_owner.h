// SPDX-License-Identifier: GPL-2.0-or-later
// Who gets signals about a file: F_SETOWN, F_SETSIG and O_ASYNC of fcntl(2).
#pragma once

#include "engine/files/file_scan.h"

namespace icp {

// Refuses signals for a process outside of the capsule.
void check_owner(FileScan& scan, Description& description);
// `states` may be used to find the capsule's number of a process group.
void capture_owner(FileScan& scan, Description& description, const std::vector<pb::Process*>& states);

// In the process, since pids and O_ASYNC's descriptor number (si_fd) are its own. `local`: the agent's
// descriptor of the same description.
void restore_owner(RemoteProcess& remote, const pb::OpenFile& file, int fd, int local);

}  // namespace icp
