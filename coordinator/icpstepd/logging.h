// SPDX-License-Identifier: GPL-2.0-or-later
// The administrator's log (icp.yaml: log, log_level), by spdlog's default logger.
#pragma once

#include <string>

#include "coordinator/config.h"

namespace icp {

// `who` begins every line: "node1 12.0". A log that cannot be written is no reason to fail: syslog then.
void start_logging(const Config& config, const std::string& who);

}  // namespace icp
