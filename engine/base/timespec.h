// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <time.h>

#include <cstdint>

namespace icp {

inline timespec to_timespec(uint64_t ns) {
  constexpr uint64_t kNsPerSecond = 1'000'000'000;
  return {.tv_sec = static_cast<time_t>(ns / kNsPerSecond), .tv_nsec = static_cast<long>(ns % kNsPerSecond)};
}

}  // namespace icp
