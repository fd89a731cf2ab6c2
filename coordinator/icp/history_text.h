// SPDX-License-Identifier: GPL-2.0-or-later
// What icp history prints: the runs of a job, and what each cost. Pure functions; the text is safe for a terminal.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

// Milliseconds of work after the last version of a run that has ended, or of all of it when there is no version; 0 when
// its processes have not run since that version; nothing for a run that goes on, or came to its own end.
std::optional<uint64_t> work_lost_ms(const net::RunRecord& run);

// So long it took, or has so far.
uint64_t length_ms(const net::RunRecord& run, uint64_t now_unix_ms);
// Why it ended, or that it runs.
std::string end_text(const net::RunRecord& run);

// One line for each run, and their sum.
std::string history_text(const net::Reply& reply, uint64_t now_unix_ms);
nlohmann::json history_json(const net::Reply& reply);

}  // namespace icp
