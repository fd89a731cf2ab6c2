// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/duration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace icp {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

struct Case {
  std::string text;
  int64_t value;  // milliseconds
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.text; }

class Accepted : public testing::TestWithParam<Case> {};

TEST_P(Accepted, GivesMilliseconds) {
  std::string why;
  const auto value = parse_duration(GetParam().text, why);
  ASSERT_TRUE(value) << why;
  EXPECT_EQ(value->count(), GetParam().value);
  EXPECT_TRUE(why.empty());
}

constexpr int64_t kDay = 86'400'000;

INSTANTIATE_TEST_SUITE_P(Suffix, Accepted,
                         testing::Values(Case{"30s", 30'000}, Case{"10m", 600'000}, Case{"2h", 7'200'000},
                                         Case{"1d", kDay}, Case{"0.5s", 500}, Case{"0.001s", 1},
                                         Case{"1.5h", 5'400'000}, Case{"0.25d", kDay / 4},
                                         Case{"0.5000000000000s", 500}, Case{"090s", 90'000},
                                         Case{"36500d", 36500 * kDay}));
// srun(1), --time.
INSTANTIATE_TEST_SUITE_P(Slurm, Accepted,
                         testing::Values(Case{"10", 600'000}, Case{"0:02", 2'000}, Case{"1:30", 90'000},
                                         Case{"0:90", 90'000}, Case{"1:2:3", 3'723'000}, Case{"01:00:00", 3'600'000},
                                         Case{"0:0:1", 1'000}, Case{"1-0", kDay}, Case{"2-12", 2 * kDay + kDay / 2},
                                         Case{"0-0:5", 300'000}, Case{"1-2:3", kDay + 7'380'000},
                                         Case{"1-2:3:4", kDay + 7'384'000}));

class Refused : public testing::TestWithParam<std::string> {};

TEST_P(Refused, ShowsTheGrammar) {
  std::string why;
  EXPECT_FALSE(parse_duration(GetParam(), why));
  EXPECT_THAT(why, HasSubstr("minutes:seconds"));
  EXPECT_THAT(why, HasSubstr("30s"));
  EXPECT_EQ(why.find('\n'), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Garbage, Refused,
                         testing::Values("", " ", "s", "x", "5x", "-5", "-5s", "+5", "5 ", " 5", "1.5", ".5s", "5.s",
                                         "5..5s", "1.5.5s", "1e3s", "0x10", "5ms", "5S", "1h30m", ":", "1:", ":1",
                                         "1::2", "1:2:3:4", "-", "1-", "-1", "1--2", "1-2-3", "1-2:3:4:5", "1:-2",
                                         "1:2s", "1-2s", "unlimited", "nan", "inf", "5\n", "\x1b[31m"));
INSTANTIATE_TEST_SUITE_P(Zero, Refused,
                         testing::Values("0", "0s", "0.0s", "0:00", "0:0:0", "0-0", "0-0:0:0", "0.0001s", "0d"));
INSTANTIATE_TEST_SUITE_P(Overflow, Refused,
                         testing::Values("36501d", "36500.1d", "52560001", "4294967296", "9223372036854775807",
                                         "18446744073709551616", "99999999999999999999999999s",
                                         "99999999999999999999:0", "36500-0:0:1", "9223372036854775807-0",
                                         std::string(100'000, '9')));

TEST(Duration, SaysWhatIsWrong) {
  std::string why;
  parse_duration("0", why);
  EXPECT_THAT(why, HasSubstr("\"0\" is too short"));
  parse_duration("99999d", why);
  EXPECT_THAT(why, HasSubstr("\"99999d\" is too long"));
  parse_duration("soon", why);
  EXPECT_THAT(why, HasSubstr("\"soon\" is not a time"));
  parse_duration(std::string(1000, 'a'), why);
  EXPECT_LT(why.size(), 400u);
  parse_duration("\x1b[2J", why);
  EXPECT_EQ(why.find('\x1b'), std::string::npos);
}

TEST(Duration, FormatsWhatItReads) {
  EXPECT_EQ(format_duration(milliseconds(500)), "0.5s");
  EXPECT_EQ(format_duration(milliseconds(1)), "0.001s");
  EXPECT_EQ(format_duration(milliseconds(90'000)), "90s");
  EXPECT_EQ(format_duration(milliseconds(600'000)), "10m");
  EXPECT_EQ(format_duration(milliseconds(kDay)), "1d");
  for (int64_t value : {1ll, 999ll, 1001ll, 12'340ll, 60'000ll, 61'500ll, 7'200'000ll, 36500ll * kDay}) {
    std::string why;
    EXPECT_EQ(parse_duration(format_duration(milliseconds(value)), why), milliseconds(value)) << value;
  }
}

}  // namespace
}  // namespace icp
