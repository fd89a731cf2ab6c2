// SPDX-License-Identifier: GPL-2.0-or-later
// Where the files are that a process watches with inotify: the kernel tells their inodes alone.
#pragma once

#include <fcntl.h>
#include <sys/types.h>

#include <array>
#include <map>
#include <string>

namespace icp::privileged {

// Paths by watch descriptor, of those whose name the kernel still knows. They are hints: the caller looks whether they
// lead to the inode. `process`: descriptor of /proc/PID. Asks by file handles, which takes CAP_DAC_READ_SEARCH.
std::map<int, std::string> watched_paths(int process, int fd);

// What it reads for it.
struct FileHandle {
  file_handle header{};
  std::array<unsigned char, MAX_HANDLE_SZ> bytes{};
};
struct Watch {
  int wd = 0;
  unsigned major = 0, minor = 0;
  FileHandle handle;
};
// A line of /proc/PID/fdinfo/N; false: it is none of a watch.
bool parse_watch(const std::string& line, Watch& watch);

}  // namespace icp::privileged
