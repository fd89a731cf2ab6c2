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

  // Whether a line of so many bytes may be written. Once it is used up, not every line that would just fit: a gap that
  // is told of is better than many.
  bool take(uint64_t bytes, Clock::time_point now) {
    const auto passed = std::chrono::duration_cast<std::chrono::milliseconds>(now - last_).count();
    const int64_t gained = std::min<int64_t>(passed, kBurst) * kPerSecond / 1000;
    if (gained > 0) {
      left_ = std::min(left_ + gained, kBurst);
      last_ = now;
    }
    const int64_t cost = static_cast<int64_t>(bytes) + kOfLine;
    const bool enough = left_ >= (lost_ > 0 ? std::max(kBurst / 16, cost) : cost);
    if (enough) {
      left_ -= cost;
      lost_ = 0;
    } else {
      ++lost_;
    }
    return enough;
  }
  // How many in a row were not, up to now.
  uint64_t lost() const { return lost_; }

 private:
  int64_t left_ = kBurst;
  uint64_t lost_ = 0;
  Clock::time_point last_ = Clock::now();
};

}  // namespace icp
