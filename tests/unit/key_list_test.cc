// SPDX-License-Identifier: GPL-2.0-or-later
#include <gtest/gtest.h>

#include "engine/process/keyrings.h"

namespace icp {
namespace {

constexpr char kOfLogin[] =
    "13018a5a I--Q---     1 perm 1f3f0000  1000 65534 keyring   _uid_ses.1000: 1\n"
    "1b2c63c6 I--Q---     2 perm 1f3f0000  1000 65534 keyring   _uid.1000: empty\n"
    "27648b1d I--Q---     4 perm 3f030000     0     0 keyring   _ses: 1\n"
    "2e155ac5 I--Q---     1 perm 3f010000  1000  1000 user      invocation_id: 32\n";

TEST(KeyList, KeysOfLoginAreNobodysOwn) {
  const KeyList list = KeyList::parse(kOfLogin);
  EXPECT_FALSE(list.has_own(1000));
  EXPECT_FALSE(list.has_own(0));
  ASSERT_NE(list.find(0x1b2c63c6), nullptr);
  EXPECT_EQ(list.find(0x1b2c63c6)->description, "_uid.1000");
  EXPECT_EQ(list.find(0x1b2c63c7), nullptr);
}

TEST(KeyList, OwnKeysAndRings) {
  std::string text = kOfLogin;
  text += "3f00aa01 I--Q---     1 perm 3f010000  1000  1000 user      ccache:one: two: 12\n";
  const KeyList key = KeyList::parse(text);
  EXPECT_TRUE(key.has_own(1000));
  EXPECT_FALSE(key.has_own(1001));
  ASSERT_NE(key.find(0x3f00aa01), nullptr);
  EXPECT_EQ(key.find(0x3f00aa01)->description, "ccache:one: two");
  EXPECT_EQ(key.find(0x3f00aa01)->type, "user");
  EXPECT_TRUE(KeyList::parse("ff00aa01 I--Q---     1 2d 3f010000  1000  1000 keyring   ring: empty\n").has_own(1000));
}

TEST(KeyList, LinesOfAnotherKindAreLeftOut) { EXPECT_FALSE(KeyList::parse("nothing\n\n1 2 3\n").has_own(0)); }

}  // namespace
}  // namespace icp
