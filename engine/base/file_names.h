// SPDX-License-Identifier: GPL-2.0-or-later
// Names of a file: a file is known by device and inode, and may have several names, or others than when it was opened.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"

namespace icp {

// Opens a path of the user's making, as openat2(2) does with O_CLOEXEC: below `root` (a directory opened with O_PATH,
// or -1: this process's root), whatever links and ".." it goes through, and through none of /proc's magic links. -1 and
// errno on failure.
UniqueFd open_below(int root, const std::string& path, int flags, unsigned mode = 0);
// An absolute path that the kernel can take; what an image holds need not be one.
bool is_usable_path(const std::string& path);

// Names in the directory `directory` (a path below `root`, a directory opened with O_PATH, or -1: this process's root)
// that lead to the inode of `status`, in the order of the alphabet. None when the directory cannot be read. The
// directory is read once, by inode numbers; a file is looked at only where these fit.
std::vector<std::string> names_in_directory(int root, const std::string& directory, const struct stat& status);

// All names in an open directory, read from its beginning, in the order of the alphabet, without "." and "..". Nothing,
// with errno, when it cannot be read.
std::optional<std::vector<std::string>> list_directory(int directory);

// Where paths that /proc tells of a process begin: in its mount namespace, but not below its chroot. None if it has
// ended.
UniqueFd open_root_of(pid_t pid);

// Whether an absolute path is a directory's own, or that of something below it.
bool is_within(const std::string& path, const std::string& directory);
// A path within `from`, where what was there is at `to`.
std::string moved_path(const std::string& path, const std::string& from, const std::string& to);

// "/a/b" -> "/a/", "b"
std::string directory_of(const std::string& path);
std::string last_name_of(const std::string& path);

}  // namespace icp
