// SPDX-License-Identifier: GPL-2.0-or-later
// Paths of an image that are others at the restart.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "engine/image/image.pb.h"

namespace icp {

using PathMap = std::vector<std::pair<std::string, std::string>>;  // absolute, without a slash at their ends: old, new

// The longest old path that is the path itself, or a directory above it, counts; a new one is not looked up again.
// Relative paths, and what is below none of them, stay.
std::string mapped_path(const PathMap& map, const std::string& path);

// All paths by which files, directories, FIFOs, Unix sockets and mapped files would be opened. Throws Error (kUsage)
// for a socket whose new name does not fit into an address.
void map_paths(pb::Capsule& capsule, const PathMap& map);

}  // namespace icp
