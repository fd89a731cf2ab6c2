// SPDX-License-Identifier: GPL-2.0-or-later
// Who may change what of an image's node, as flock(2) locks on files in its directory. The kernel drops a lock with
// its holder, however that ends.
//
//   .write.<node>.lock  held alone by whoever makes a version or takes versions away
//   .session.<node>.lock  held for as long as a program takes versions into the directory; says which one that is
//   .read.<node>.lock   shared by all who read versions; held alone while files of versions are removed
//
// Stateless, hence thread-safe. Callers hold the FsIdentity.
#pragma once

#include "engine/base/unique_fd.h"
#include "engine/image/image_root.h"

namespace icp {

// One program takes versions into a directory: two would interleave theirs, and each remove the other's old ones.
// kBusy, with a sentence that names the other one.
UniqueFd lock_for_session(const ImageRoot& root);
// Waits up to half a minute: a compaction holds it while it makes its result the latest version. kBusy after that.
UniqueFd lock_for_writing(const ImageRoot& root);
// Waits for a removal to end. An image that the caller may not write to is read without: the result is empty.
UniqueFd lock_for_reading(const ImageRoot& root);
// kBusy when somebody is reading a version.
UniqueFd lock_for_removal(const ImageRoot& root);

}  // namespace icp
