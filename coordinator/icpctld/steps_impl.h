// SPDX-License-Identifier: GPL-2.0-or-later
// What the two files of Steps share.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

#include "coordinator/icpctld/steps.h"
#include "coordinator/protocol/packet.h"
#include "engine/base/error.h"

namespace icp {

inline constexpr size_t kLongestErrorText = 4096;

inline std::string name_of(const StepKey& key) { return fmt::format("{}.{}", key.job, protocol::step_name(key.step)); }
inline std::string name_of(const Step& step) { return name_of(step.facts.key); }

// A catalog that cannot be written (a full disk, most likely) stops no round and drops no agent.
template <typename Write>
void record(Write write) {
  try {
    write();
  } catch (const Error& error) {
    spdlog::error("{}", error.what());
  }
}

}  // namespace icp
