// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <sys/types.h>

#include <string>

namespace icp {

// In the new user namespace of a process ("self" or its number): one line each, the given ids as they are, and no way
// to drop groups (user_namespaces(7)). Returns the file of /proc/PID that could not be written, with errno; null: all
// were.
const char* map_own_ids(const std::string& process, uid_t uid, gid_t gid);

}  // namespace icp
