// SPDX-License-Identifier: GPL-2.0-or-later
// Where the files are that a process watches with inotify: the kernel tells their inodes alone.
#pragma once

#include <sys/types.h>

#include <map>
#include <string>

namespace icp::privileged {

// Paths by watch descriptor, of those whose name the kernel still knows. They are hints: the caller looks whether they
// lead to the inode. `process`: descriptor of /proc/PID. Asks by file handles, which takes CAP_DAC_READ_SEARCH.
std::map<int, std::string> watched_paths(int process, int fd);

}  // namespace icp::privileged
