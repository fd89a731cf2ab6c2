// SPDX-License-Identifier: GPL-2.0-or-later
// Locks on files of any kind: flock(2), and fcntl(2)'s by process (POSIX) and by description (OFD).
#pragma once

#include "engine/files/file_scan.h"

namespace icp {

// Refuses leases that are being broken.
void check_locks(FileScan& scan, Description& description);
// Fills message.flock, ofd_locks, and posix_locks of the processes that hold some.
void capture_locks(Description& description, const std::vector<pb::Process*>& states);

// Takes OFD locks, and flock where no process does, which belong to the description. Throws kSystem, naming the file,
// when somebody else has taken them meanwhile. `in_process`: one has the description, and restore_own_locks() is to
// come.
void restore_locks(const pb::OpenFile& file, int fd, bool in_process);
// By a process that has the description, for the kernel names who took them: flock and lease.
void restore_own_locks(RemoteProcess& remote, const pb::OpenFile& file, int fd);
// Takes POSIX locks from inside the process.
void restore_posix_locks(RemoteProcess& remote, const pb::Process& process,
                         const std::map<uint32_t, const pb::OpenFile*>& files);

}  // namespace icp
