// SPDX-License-Identifier: GPL-2.0-or-later
// Locks on files of any kind: flock(2), and fcntl(2)'s by process (POSIX) and by description (OFD).
#pragma once

#include "engine/files/file_scan.h"

namespace icp {

// Refuses leases.
void check_locks(FileScan& scan, Description& description);
// Fills message.flock, ofd_locks, and posix_locks of the processes that hold some.
void capture_locks(Description& description, const std::vector<pb::Process*>& states);

// Takes flock and OFD locks, which belong to the description. Throws kSystem, naming the file, when somebody
// else has taken them meanwhile.
void restore_locks(const pb::OpenFile& file, int fd);
// Takes POSIX locks from inside the process.
void restore_posix_locks(RemoteProcess& remote, const pb::Process& process,
                         const std::map<uint32_t, const pb::OpenFile*>& files);

}  // namespace icp
