// SPDX-License-Identifier: GPL-2.0-or-later
// The time grammar of every option that takes an interval. The SPANK plugin uses it too, hence: nothing but the
// standard library, and no exceptions. Thread-safe.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace icp {

// What parse_duration() understands, for help texts and refusals:
//   "30s, 10m, 2h, 1d (also 0.5s), or Slurm's minutes, minutes:seconds, hours:minutes:seconds, days-hours, ..."
extern const char* const kDurationGrammar;

// Longest interval that is taken, far from any overflow.
inline constexpr std::chrono::hours kLongestDuration{24 * 36500};

// 1 ms to kLongestDuration. Otherwise empty, and `why` is a sentence that shows the grammar. Slurm's forms are
// those of srun(1) --time: a bare number is minutes, and a part may be larger than its clock would show (0:90).
std::optional<std::chrono::milliseconds> parse_duration(std::string_view text, std::string& why);

// The shortest form that parse_duration() reads back as the same value: "2h", "90s", "0.5s".
std::string format_duration(std::chrono::milliseconds value);

}  // namespace icp
