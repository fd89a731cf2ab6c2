// SPDX-License-Identifier: GPL-2.0-or-later
// What --json prints. Names and units stay: programs read them (docs/man/icp.1). Pure functions.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "engine/base/error.h"
#include "engine/base/finding.h"
#include "engine/image/image_dir.h"
#include "engine/session.h"

namespace icp {

nlohmann::json version_json(const VersionInfo& info);                                 // icp list
nlohmann::json image_json(const pb::Manifest& manifest, const pb::Capsule& capsule);  // icp show
nlohmann::json result_json(const CheckpointResult& result);                           // icp checkpoint
nlohmann::json findings_json(const Findings& findings);                               // icp check
nlohmann::json error_json(const Error& error);                                        // any command that failed

}  // namespace icp
