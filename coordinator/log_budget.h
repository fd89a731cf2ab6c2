// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace icp {

// How much a user's process may have written into root's log, whose disk is everybody's: a burst, then a little all the
// time. One thread.
class LogBudget {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr int64_t kBurst = 1 << 20, kPerSecond = 1 << 10;  // bytes
  static constexpr int64_t kOfLine = 64;                            // beside the text: time, job and node

  // 0: a line of so many bytes may be written. Else how many in a row may not, with this one.
  uint64_t take(uint64_t bytes, Clock::time_point now) {
    const auto passed = std::chrono::duration_cast<std::chrono::milliseconds>(now - last_).count();
    const int64_t gained = std::min<int64_t>(passed, kBurst) * kPerSecond / 1000;
    if (gained > 0) {
      left_ = std::min(left_ + gained, kBurst);
      last_ = now;
    }
    const int64_t cost = static_cast<int64_t>(bytes) + kOfLine;
    // Once it is used up, not every line that would just fit: a gap that is told of is better than many.
    if (left_ < (lost_ > 0 ? kBurst / 16 : cost)) return ++lost_;
    lost_ = 0;
    left_ -= cost;
    return 0;
  }

 private:
  int64_t left_ = kBurst;
  uint64_t lost_ = 0;
  Clock::time_point last_ = Clock::now();
};

}  // namespace icp
