// SPDX-License-Identifier: GPL-2.0-or-later
// icpctld's answers as JSON. Pure functions.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

nlohmann::json steps_json(const net::Reply& reply);  // an array
nlohmann::json ipc_json(const net::Reply& reply);    // an array

}  // namespace icp
