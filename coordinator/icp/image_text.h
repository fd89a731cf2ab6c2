// SPDX-License-Identifier: GPL-2.0-or-later
// What icp list and icp show print for people. Pure functions; the text is safe for a terminal.
#pragma once

#include <string>
#include <vector>

#include "engine/image/image_dir.h"

namespace icp {

std::string version_table(const std::vector<VersionInfo>& versions);
// `detailed`: every mapping, too.
std::string image_text(const pb::Manifest& manifest, const pb::Capsule& capsule, bool detailed);

}  // namespace icp
