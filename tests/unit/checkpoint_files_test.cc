// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/checkpoint_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace icp {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(CheckpointFilesWords, AreReadAsTheGrammarSays) {
  const auto none = parse_checkpoint_files("none"), open = parse_checkpoint_files("open"),
             both = parse_checkpoint_files("dir:/a b/,open,dir:/c:d");
  ASSERT_TRUE(none && open && both);
  EXPECT_FALSE(none->open);
  EXPECT_THAT(none->directories, IsEmpty());
  EXPECT_TRUE(open->open);
  EXPECT_TRUE(both->open);
  EXPECT_THAT(both->directories, ElementsAre("/a b", "/c:d"));
}

TEST(CheckpointFilesWords, OthersAreNone) {
  for (const char* wrong : {"", "all", "open,", ",open", "none,open", "dir:", "dir:here", "dir:/a\n", "dir:/a,b"})
    EXPECT_FALSE(parse_checkpoint_files(wrong)) << wrong;
}

}  // namespace
}  // namespace icp
