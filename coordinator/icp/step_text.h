// SPDX-License-Identifier: GPL-2.0-or-later
// What icp jobs, status and ipc print for people. Pure functions; the text is safe for a terminal.
#pragma once

#include <cstdint>
#include <string>

#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

// "12 s", "3 min 20 s", "2 h 5 min", "4 d 1 h".
std::string rough_duration(uint64_t milliseconds);

// Where the round of a step is: "preparing", "writing" ...; "idle" for none, "?" for a phase that is not known here.
// The agent of a step on one node goes through them all without a word: "under way".
std::string phase_text(const net::StepStatus& step);

// One line for each step of the reply.
std::string steps_table(const net::Reply& reply, uint64_t now_unix_ms);
// All about each step, with its versions.
std::string steps_text(const net::Reply& reply, uint64_t now_unix_ms);
// "version 3: 258 pages, 1.1 MiB, stopped 14.0 ms, 24.5 ms".
std::string version_line(const net::VersionRecord& version);
// One line for each System V object.
std::string ipc_table(const net::Reply& reply);

}  // namespace icp
