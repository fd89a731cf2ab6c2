// SPDX-License-Identifier: GPL-2.0-or-later
// Directories and files of an image as the operating system sees them: opened from a directory descriptor,
// never through a symbolic link, checked for owner and mode. Callers hold the FsIdentity. Error messages show `path`,
// the full name of the thing; `name` is its last component. Stateless, hence thread-safe.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/identity.h"
#include "engine/base/unique_fd.h"

namespace icp {

// kPermission unless the directory belongs to the identity or root and only its owner may write to it.
void check_private(int fd, const std::string& path, const Identity& identity);

// An existing directory, checked as above. Missing, a symbolic link or no directory: kImage.
UniqueFd open_private_dir(int at, const std::string& name, const std::string& path, const Identity& identity);
// Makes a directory of mode 0700 whatever the umask is. Returns false when there is something of that name already.
bool make_private_dir(int at, const std::string& name, const std::string& path);
// A new file of mode 0600 whatever the umask is, open for reading and writing.
UniqueFd create_private_file(int at, const std::string& name, const std::string& path);

// An existing regular file for reading, that belongs to the identity or root. Anything else (a symbolic link, a FIFO,
// missing): kImage.
UniqueFd open_regular_file(int at, const std::string& name, const std::string& path, const Identity& identity);

// Names in a directory, without "." and "..", sorted.
std::vector<std::string> list_dir(int fd, const std::string& path);
// Removes a directory that holds nothing but files. Returns false when something stays.
bool remove_flat_dir(int at, const std::string& name);

uint64_t file_size(int fd, const std::string& path);
// All bytes or an exception; a file that ends early is kImage.
void read_at(int fd, void* to, size_t bytes, uint64_t offset, const std::string& path);
void write_at(int fd, const void* from, size_t bytes, uint64_t offset, const std::string& path);
void flush_to_disk(int fd, const std::string& path);

}  // namespace icp
