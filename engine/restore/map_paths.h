// SPDX-License-Identifier: GPL-2.0-or-later
// The paths of an image, translated for a restart.
#pragma once

#include "engine/base/path_map.h"
#include "engine/image/image.pb.h"

namespace icp {

// All paths by which files, directories, FIFOs, Unix sockets and mapped files would be opened. Throws Error (kUsage)
// for a socket whose new name does not fit into an address.
void map_paths(pb::Capsule& capsule, const PathMap& map);

}  // namespace icp
