// SPDX-License-Identifier: GPL-2.0-or-later
// Whose rights a command of icp uses: never taken from an image's content.
#pragma once

#include <string>

#include "engine/base/identity.h"

namespace icp {

// Throws kPermission unless the caller is root: tracing processes, namespaces and other users' files need it.
void require_root(const std::string& command);

// Real ids and groups of the caller.
Identity caller_identity();

// A user by name or number, with all groups of the user database. kUsage if unknown.
Identity user_identity(const std::string& name);

// Who reads an image: the caller; root reads as the owner of the directory, so that a link that the owner planted
// leads no further than the owner could go.
Identity reader_of(const std::string& image_path);

// The login name, or the number.
std::string user_name(uid_t uid);

// Becomes `identity` for good, in a child about to exec: groups, gid, uid; HOME, USER, LOGNAME and SHELL as
// runuser(1) sets them. Throws kSystem.
void become(const Identity& identity);

}  // namespace icp
