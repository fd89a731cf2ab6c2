// SPDX-License-Identifier: GPL-2.0-or-later
// Paths that are others at a restart than in the image.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace icp {

using PathMap = std::vector<std::pair<std::string, std::string>>;  // absolute, without a slash at their ends: old, new

// The longest old path that is the path itself, or a directory above it, counts; a new one is not looked up again.
// Relative paths, and what is below none of them, stay.
std::string mapped_path(const PathMap& map, const std::string& path);

}  // namespace icp
