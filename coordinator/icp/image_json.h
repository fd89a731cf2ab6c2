// SPDX-License-Identifier: GPL-2.0-or-later
// What --json prints. Names and units stay: programs read them (docs/man/icp.1). Pure functions.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "engine/base/finding.h"
#include "engine/image/image_dir.h"
#include "engine/session.h"

namespace icp {

nlohmann::json version_json(const VersionInfo& info);                                 // icp list
nlohmann::json image_json(const pb::Manifest& manifest, const pb::Capsule& capsule);  // icp show
nlohmann::json result_json(const CheckpointResult& result);                           // icp checkpoint
nlohmann::json findings_json(const Findings& findings);                               // icp check

// On stdout, indented; bytes that are no UTF-8 (names of files) become U+FFFD.
void print_json(const nlohmann::json& value);

}  // namespace icp
