// SPDX-License-Identifier: GPL-2.0-or-later
// Whose rights a command of icp uses: never taken from an image's content.
#pragma once

#include <string>

#include "engine/base/identity.h"

namespace icp {

// Real ids and groups of the caller.
Identity caller_identity();

// A user by name or number, with all groups of the user database. kUsage if unknown.
Identity user_identity(const std::string& name);

// The same for a user whose processes are to be run or restarted: for others than root only they themselves, with the
// groups they have; kPermission for somebody else.
Identity identity_to_work_as(const std::string& name);

// Who reads an image: the caller; root reads as the owner of the directory, so that a link that the owner planted
// leads no further than the owner could go.
Identity reader_of(const std::string& image_path);

// From here on the calling process, which has one thread, does everything with the rights of `identity` but what root's
// broker does for it (engine/broker/broker.h). Nothing changes for root's own processes.
void work_as(const Identity& identity);
// Of root: nothing but the rights of the user whose image is looked at or changed is left. The user may not look into
// this process, which has root's terminal. Of others, and for root's own images: nothing.
void take_rights_of(const Identity& identity);

// Root's own images have a mark that only root can set (an extended attribute, trusted.slurm_icp): the copy that root
// makes of a user's image is root's by its owner, and its programs would run as root. The first does nothing for others
// than root; the second throws kPermission for an image without the mark, or at a place where a user could put another
// one once the mark has been seen. It returns the path to use from then on, which no link is part of.
void mark_roots_image(const std::string& image_path, const Identity& identity);
std::string check_roots_image(const std::string& image_path, const Identity& identity);

// The login name, or the number.
std::string user_name(uid_t uid);

// Becomes `identity` for good, in a child about to exec: groups, gid, uid; HOME, USER, LOGNAME and SHELL as
// runuser(1) sets them. Throws kSystem.
void become(const Identity& identity);

}  // namespace icp
