// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace icp {
namespace {

TEST(Check, SaysWhatDoesNotHoldAndWhatItIsAbout) {
  const int pid = 12;
  EXPECT_NO_THROW(ICP_CHECK(pid == 12, "process {}", pid));
  try {
    ICP_CHECK(pid == 13, "process {} at {:x}", pid, 0x1000);
    FAIL() << "it holds";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInternal);
    EXPECT_THAT(error.what(), testing::StartsWith("process 12 at 1000 (pid == 13 does not hold at "));
    EXPECT_THAT(error.what(), testing::HasSubstr("check_test.cc:"));
    EXPECT_THAT(error.hint(), testing::HasSubstr("report it"));
  }
}

}  // namespace
}  // namespace icp
