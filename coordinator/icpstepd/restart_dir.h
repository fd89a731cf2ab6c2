// SPDX-License-Identifier: GPL-2.0-or-later
// What somebody asked icpctld for after the job was submitted: `icp restart JOB --image-dir DIR`.
#pragma once

#include <string>

#include "coordinator/config.h"
#include "coordinator/protocol/packet.h"

namespace icp {

// The directory that a requeued job is to go on from, as --restart-dir would name it; empty: none, no coordinator is
// configured, or it does not answer within about a second (logged).
std::string wanted_restart_dir(const Config& config, const protocol::StepFacts& facts);

}  // namespace icp
