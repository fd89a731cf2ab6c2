// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/protocol/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/base/error.h"

namespace icp::net {
namespace {

constexpr size_t kMost = 1000;

Key test_key() {
  Key key;
  for (size_t i = 0; i < key.size(); i++) key[i] = static_cast<unsigned char>(i);
  return key;
}

// What the reader refuses; "none" when it takes all.
std::string complaint(FrameReader& reader, const std::string& bytes) {
  try {
    reader.feed(bytes);
    while (reader.next()) {
    }
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kPermission);
    return error.what();
  }
  return "none";
}

TEST(Frame, RoundTripWhateverThePieces) {
  const std::vector<std::string> payloads = {"", "x", std::string(kMost, 'y'), std::string("\0\1\2", 3)};
  for (const size_t piece : {1u, 3u, 7u, 5000u}) {
    FrameWriter writer(test_key());
    FrameReader reader(test_key(), kMost);
    std::string all;
    for (const auto& payload : payloads) all += writer.frame(payload);
    std::vector<std::string> read;
    for (size_t at = 0; at < all.size(); at += piece) {
      reader.feed(std::string_view(all).substr(at, piece));
      while (auto payload = reader.next()) read.push_back(*payload);
    }
    EXPECT_EQ(read, payloads);
  }
}

TEST(Frame, ACutFrameIsNotGivenOut) {
  FrameWriter writer(test_key());
  const std::string whole = writer.frame("payload");
  for (size_t length = 0; length < whole.size(); length++) {
    FrameReader reader(test_key(), kMost);
    reader.feed(whole.substr(0, length));
    EXPECT_FALSE(reader.next()) << length;
  }
}

TEST(Frame, EveryFlippedBitIsNoticed) {
  FrameWriter writer(test_key());
  const std::string whole = writer.frame("payload");
  for (size_t bit = 0; bit < whole.size() * 8; bit++) {
    std::string wrong = whole;
    wrong[bit / 8] = static_cast<char>(wrong[bit / 8] ^ 1 << bit % 8);
    FrameReader reader(test_key(), kMost);
    bool given_out = false;
    try {
      reader.feed(wrong);
      given_out = reader.next().has_value();
    } catch (const Error&) {
    }
    EXPECT_FALSE(given_out) << bit;
  }
}

TEST(Frame, RepeatedReorderedLeftOutOrSentBack) {
  FrameWriter writer(test_key());
  const std::string first = writer.frame("one"), second = writer.frame("two");
  const auto denied = testing::HasSubstr("is not authentic");
  FrameReader repeated(test_key(), kMost), reordered(test_key(), kMost), left_out(test_key(), kMost);
  EXPECT_EQ(complaint(repeated, first), "none");
  EXPECT_THAT(complaint(repeated, first), denied);
  EXPECT_THAT(complaint(reordered, second + first), denied);
  EXPECT_THAT(complaint(left_out, second), denied);
  // The other direction has a key of its own.
  const Key a = test_key(), b = digest(a);
  FrameReader back(derive_key(a, b, "to peer"), kMost);
  EXPECT_THAT(complaint(back, FrameWriter(derive_key(a, b, "to coordinator")).frame("one")), denied);
}

TEST(Frame, OversizeIsRefusedByItsFirstFourBytes) {
  FrameReader reader(test_key(), kMost), longest(test_key(), kMost), at_limit(test_key(), kMost);
  EXPECT_EQ(complaint(reader, std::string("\0\0\x03\xe9", 4)),
            "a message of 1001 bytes is longer than the 1000 allowed");
  EXPECT_THAT(complaint(longest, "\xff\xff\xff\xff"), testing::HasSubstr("4294967295 bytes"));
  EXPECT_EQ(complaint(at_limit, FrameWriter(test_key()).frame(std::string(kMost, 'x'))), "none");
}

TEST(Frame, KeysDiffer) {
  EXPECT_NE(random_key(), random_key());
  const Key a = test_key(), b = digest(a);
  EXPECT_NE(a, b);
  EXPECT_NE(derive_key(a, b, "to peer"), derive_key(a, b, "to coordinator"));
  EXPECT_NE(derive_key(a, b, "to peer"), derive_key(b, a, "to peer"));
  EXPECT_EQ(derive_key(a, b, "to peer"), derive_key(a, b, "to peer"));
}

}  // namespace
}  // namespace icp::net
