// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/duration.h"

#include <array>
#include <cstdint>
#include <vector>

namespace icp {

const char* const kDurationGrammar =
    "30s, 10m, 2h or 1d (also 0.5s), or Slurm's minutes, minutes:seconds, hours:minutes:seconds, days-hours, "
    "days-hours:minutes or days-hours:minutes:seconds; a bare number is minutes";

namespace {

constexpr int64_t kSecond = 1000;  // milliseconds
constexpr int64_t kMinute = 60 * kSecond;
constexpr int64_t kHour = 60 * kMinute;
constexpr int64_t kDay = 24 * kHour;
constexpr int64_t kLongest = std::chrono::milliseconds(kLongestDuration).count();

struct Unit {
  char suffix;
  int64_t milliseconds;
};
constexpr std::array<Unit, 4> kUnits{{{'s', kSecond}, {'m', kMinute}, {'h', kHour}, {'d', kDay}}};

enum class Fault { kNone, kGrammar, kTooLong };

// Digits only. Stops counting beyond kLongest, so that nothing overflows: every unit is at least a millisecond.
Fault parse_number(std::string_view text, int64_t& value) {
  value = 0;
  if (text.empty()) return Fault::kGrammar;
  bool too_long = false;
  for (const char c : text) {
    if (c < '0' || c > '9') return Fault::kGrammar;
    if (!too_long) value = value * 10 + (c - '0');
    too_long = too_long || value > kLongest;
  }
  return too_long ? Fault::kTooLong : Fault::kNone;
}

Fault add(int64_t count, int64_t unit, int64_t& total) {
  if (count > (kLongest - total) / unit) return Fault::kTooLong;
  total += count * unit;
  return Fault::kNone;
}

// "30s", "0.5s": `text` without its suffix.
Fault parse_suffixed(std::string_view text, int64_t unit, int64_t& total) {
  const size_t point = text.find('.');
  int64_t count = 0;
  if (const Fault fault = parse_number(text.substr(0, point), count); fault != Fault::kNone) return fault;
  if (const Fault fault = add(count, unit, total); fault != Fault::kNone) return fault;
  if (point == std::string_view::npos) return Fault::kNone;

  const std::string_view fraction = text.substr(point + 1);
  int64_t digits = 0;
  if (fraction.empty() || fraction.find_first_not_of("0123456789") != std::string_view::npos) return Fault::kGrammar;
  int64_t scale = 1;
  for (const char c : fraction.substr(0, 9)) {  // a day has fewer than 10^9 milliseconds: more digits say nothing
    digits = digits * 10 + (c - '0');
    scale *= 10;
  }
  return add(digits * unit / scale, 1, total);
}

// The parts between colons; `after_days`: what stood before the dash was read already.
Fault parse_colons(std::string_view text, bool after_days, int64_t& total) {
  std::vector<std::string_view> parts;
  for (size_t from = 0;;) {
    const size_t colon = text.find(':', from);
    parts.push_back(text.substr(from, colon == std::string_view::npos ? colon : colon - from));
    if (colon == std::string_view::npos) break;
    from = colon + 1;
  }
  if (parts.size() > 3) return Fault::kGrammar;
  // With days the first part is hours; without, the last part is seconds, unless it is the only one.
  constexpr std::array<int64_t, 3> kFromHours{kHour, kMinute, kSecond};
  const size_t first = after_days || parts.size() == 3 ? 0 : 1;
  for (size_t i = 0; i < parts.size(); ++i) {
    int64_t count = 0;
    if (const Fault fault = parse_number(parts[i], count); fault != Fault::kNone) return fault;
    if (const Fault fault = add(count, kFromHours[first + i], total); fault != Fault::kNone) return fault;
  }
  return Fault::kNone;
}

Fault parse(std::string_view text, int64_t& total) {
  if (text.empty()) return Fault::kGrammar;
  for (const Unit& unit : kUnits)
    if (text.back() == unit.suffix) return parse_suffixed(text.substr(0, text.size() - 1), unit.milliseconds, total);

  const size_t dash = text.find('-');
  if (dash == std::string_view::npos) return parse_colons(text, false, total);
  int64_t days = 0;
  if (const Fault fault = parse_number(text.substr(0, dash), days); fault != Fault::kNone) return fault;
  if (const Fault fault = add(days, kDay, total); fault != Fault::kNone) return fault;
  return parse_colons(text.substr(dash + 1), true, total);
}

// What was typed, cut and without control characters: it goes to terminals and log files.
std::string quoted(std::string_view text) {
  std::string shown = "\"";
  for (const char c : text.substr(0, 40)) shown += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return shown + (text.size() > 40 ? "...\"" : "\"");
}

}  // namespace

std::optional<std::chrono::milliseconds> parse_duration(std::string_view text, std::string& why) {
  int64_t total = 0;
  const Fault fault = parse(text, total);
  if (fault == Fault::kNone && total > 0) return std::chrono::milliseconds(total);

  const char* reason = " is not a time: use ";
  if (fault == Fault::kTooLong) {
    reason = " is too long a time (at most 36500 days): use ";
  } else if (fault == Fault::kNone) {
    reason = " is too short a time (at least 0.001s): use ";
  }
  why = quoted(text) + reason + kDurationGrammar;
  return std::nullopt;
}

std::string format_duration(std::chrono::milliseconds value) {
  const int64_t count = value.count();
  for (size_t i = kUnits.size(); i-- > 0;)
    if (count % kUnits[i].milliseconds == 0) return std::to_string(count / kUnits[i].milliseconds) + kUnits[i].suffix;
  std::string fraction = std::to_string(1000 + count % kSecond).substr(1);
  fraction.erase(fraction.find_last_not_of('0') + 1);
  return std::to_string(count / kSecond) + "." + fraction + "s";
}

}  // namespace icp
