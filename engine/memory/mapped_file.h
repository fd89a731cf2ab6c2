// SPDX-License-Identifier: GPL-2.0-or-later
// The file or shared object behind a mapping of another process: by its /proc/PID/map_files link, and where that is not
// to be had (CAP_CHECKPOINT_RESTORE in the first user namespace), by whatever else leads to the same inode.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <string>

#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"

namespace icp {

// Like stat(2): 0, or -1 and errno (ENOENT: it is not mapped there any more). For shared memory that nothing else leads
// to, what /proc/PID/maps tells: device, inode, and that it is a file; size and times are 0.
int stat_mapped_file(pid_t pid, const MapsEntry& entry, struct stat& status);
// Opens what a mapping maps, for reading, also when the mapping has been merged with a neighbour since `entry` was read
// (as registering both with a tracker does). An empty descriptor and errno if it cannot be opened; ENOENT: it is not
// mapped there.
UniqueFd open_mapped_file(pid_t pid, const MapsEntry& entry);

}  // namespace icp
