// SPDX-License-Identifier: GPL-2.0-or-later
// Runs icp for libicp.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace slurm_icp {

// What icp prints with "--json", with these words behind its name. It gets the caller's environment and, with
// `streams`, its standard streams; else /dev/null. Throws Error: the one that icp tells of, or kSystem when it cannot
// be run, was killed, or answers with something else. Thread-safe.
nlohmann::json run_icp(const std::vector<std::string>& words, bool streams = false);

}  // namespace slurm_icp
