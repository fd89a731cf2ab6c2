// SPDX-License-Identifier: GPL-2.0-or-later
// Opening an image by the directory that a user names.
#pragma once

#include <string>

#include "engine/image/image_dir.h"

namespace icp {

// As ImageDir::open(), with better help for who named the directory above, or one that holds no version yet.
ImageDir open_image(const std::string& dir, const Identity& identity, const std::string& node);

}  // namespace icp
