// SPDX-License-Identifier: GPL-2.0-or-later
// Paths of an image: looked up below the capsule's root and opened with the user's rights only.
#pragma once

#include <sys/stat.h>

#include <optional>

#include "engine/files/file_kind.h"

namespace icp {

// A found path, opened with O_PATH: looking at it has no side effect, whatever it is.
struct FoundPath {
  UniqueFd fd;
  struct stat stat {};
};

// Looks up file.identity().path(). Throws kImage for a path that is no absolute path or a file of another type than
// `type` (S_IFREG ...) or on a file system that keeps no files of programs, kSystem when it is missing or out of the user's reach.
FoundPath find_image_path(const RestoreContext& context, const pb::OpenFile& file, mode_t type);

// The same; nothing when no file has the path.
std::optional<FoundPath> look_up(const RestoreContext& context, const pb::OpenFile& file, const std::string& path);

// Whether a file is the one of the image: inode and device, where the device's number means the same on each mount.
bool same_inode(const struct stat& now, const pb::FileIdentity& then);

// A regular file of the user that the restart is for: its mode is no obstacle.
bool is_own_file(const RestoreContext& context, const FoundPath& found);

// Opens what was found, with those of the file's flags that belong to an open file (O_CREAT, O_EXCL, O_TRUNC are
// dropped) and `extra` ones.
UniqueFd open_found(const RestoreContext& context, const pb::OpenFile& file, const FoundPath& found, int extra = 0);

// Moves to the file's position; throws kImage for one out of range.
void seek_to_position(const pb::OpenFile& file, int fd);

// At capture: true if the path still leads to the file that is open, or another one of the same directory does, which
// then is the description's target; else refuses the description.
bool path_leads_back(FileScan& scan, Description& description);

// Fills message.identity from path and stat.
void capture_identity(Description& description);

}  // namespace icp
