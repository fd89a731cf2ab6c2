// SPDX-License-Identifier: GPL-2.0-or-later
// When a job is seen to before its time limit.
#include "coordinator/icpctld/time_limits.h"

#include <gtest/gtest.h>

#include <chrono>

namespace icp {
namespace {

using namespace std::chrono_literals;

TEST(TimeLimits, LeadIsTwiceTheLongestVersionAndTheMargin) {
  EXPECT_EQ(TimeLimits::lead(0ms, 30s, 3600s), 30s);
  EXPECT_EQ(TimeLimits::lead(90s, 30s, 3600s), 210s);
}

TEST(TimeLimits, HalfOfTheTimeIsTheJobs) {
  EXPECT_EQ(TimeLimits::lead(90s, 30s, 120s), 60s);
  EXPECT_EQ(TimeLimits::lead(0ms, 30s, 40s), 20s);
}

}  // namespace
}  // namespace icp
