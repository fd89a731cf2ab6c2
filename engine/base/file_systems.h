// SPDX-License-Identifier: GPL-2.0-or-later
// On which file systems files of programs are restored. A path of an image may lead anywhere by the time it is
// followed: what the kernel makes up itself (proc, sysfs, cgroup, debugfs, tracefs, nsfs ...) is neither written to nor
// made anything in, whoever the restart is for.
#pragma once

#include <string>

#include "engine/base/unique_fd.h"

namespace icp {

enum class FileSystemKind {
  kFiles,      // of disks, networks and memory: what is written stays
  kViews,      // proc, sysfs: may be looked at
  kTerminals,  // devpts
  kOther,      // cgroup, debugfs, and what is not known
};

// `fd` may be one opened with O_PATH. kOther when it cannot be told.
FileSystemKind file_system_kind(int fd);
// The same by its number in statfs(2), for those that need no look at how they are mounted.
FileSystemKind known_file_system(long magic);
inline bool keeps_files(int fd) { return file_system_kind(fd) == FileSystemKind::kFiles; }
// The path, for a sentence that refuses it: "... is in a file system of type 0x63677270".
std::string refused_file_system(const std::string& path, int fd);

// Whether a file (opened with O_PATH, below `root`) is one of a proc file system that belongs to a process, as
// /proc/PID/mem does: that would be a process of the restart's own. True also when it cannot be told.
bool is_about_a_process(int root, int fd);

// open_below() for a path that an image names: regular files and directories of file systems that keep files; with
// O_PATH anything there; with O_CREAT a new file (O_EXCL) there. Nothing that is looked at and refused has been opened.
// -1 and errno on failure, ENOTSUP for what it does not open.
UniqueFd open_saved(int root, const std::string& path, int flags, unsigned mode = 0);

}  // namespace icp
