// SPDX-License-Identifier: GPL-2.0-or-later
// The abstract Unix socket at which the agent of a batch script hears of steps that are to be started, and the memory
// files in which requests travel. Standard library only: see request.h.
#pragma once

#include <string>

#include "engine/base/unique_fd.h"

namespace icp::launch {

// Abstract names are of a network namespace, hence everybody's: both sides look who the other one is. An invalid
// descriptor, with errno, when it is not possible.
UniqueFd listen_at(const std::string& name);
// Only where the listener has this process's effective user.
UniqueFd connect_to(const std::string& name);
// For the listener: whether the one who has connected has this process's effective user.
bool is_same_user(int connection);

// A request (encoded) in a file in memory, to be sent beside a packet. Invalid, with errno, when that fails.
UniqueFd put_in_memory(const std::string& request);
// Empty when the file holds nothing that could be a request.
std::string read_from_memory(int file);

}  // namespace icp::launch
