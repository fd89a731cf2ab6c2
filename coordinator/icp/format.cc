// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <ctime>

namespace icp {

namespace {

constexpr uint64_t kNanoseconds = 1'000'000'000;

}  // namespace

std::string with_commas(uint64_t value) {
  std::string text = std::to_string(value);
  for (size_t at = text.size(); at > 3; at -= 3) text.insert(at - 3, 1, ',');
  return text;
}

std::string human_bytes(uint64_t bytes) {
  constexpr std::array<const char*, 7> kUnits{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  // 1023.95 would print as "1024.0".
  while (value >= 1023.95 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string human_time(uint64_t nanoseconds) {
  if (nanoseconds < 1'000'000) return fmt::format("{} us", nanoseconds / 1000);
  const double milliseconds = static_cast<double>(nanoseconds) / 1e6;
  if (milliseconds < 99.95) return fmt::format("{:.1f} ms", milliseconds);
  return milliseconds < 9995 ? fmt::format("{:.2f} s", milliseconds / 1e3)
                             : fmt::format("{:.1f} s", milliseconds / 1e3);
}

std::string local_time(uint64_t unix_nanoseconds) {
  const time_t seconds = static_cast<time_t>(unix_nanoseconds / kNanoseconds);
  tm parts{};
  std::array<char, 64> text{};
  if (localtime_r(&seconds, &parts) == nullptr) return "?";  // a hostile year that does not fit
  return {text.data(), strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S", &parts)};
}

std::string utc_time(uint64_t unix_nanoseconds) {
  const time_t seconds = static_cast<time_t>(unix_nanoseconds / kNanoseconds);
  tm parts{};
  std::array<char, 64> text{};
  if (gmtime_r(&seconds, &parts) == nullptr) return "?";
  const size_t length = strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  return fmt::format("{}.{:03}Z", std::string_view(text.data(), length), unix_nanoseconds % kNanoseconds / 1'000'000);
}

std::string counted(uint64_t count, std::string_view noun, std::string_view plural) {
  if (count == 1) return fmt::format("1 {}", noun);
  return plural.empty() ? fmt::format("{} {}s", with_commas(count), noun)
                        : fmt::format("{} {}", with_commas(count), plural);
}

Table::Table(std::vector<std::string> titles) {
  for (std::string& title : titles) {
    const bool right = title.starts_with('>');
    right_.push_back(right);
    if (right) title.erase(0, 1);
  }
  rows_.push_back(std::move(titles));
}

void Table::add(std::vector<std::string> row) {
  row.resize(right_.size());
  rows_.push_back(std::move(row));
}

std::string Table::text() const {
  std::vector<size_t> widths(right_.size());
  for (const auto& row : rows_)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      if (i > 0) line += "  ";
      line += right_[i] ? fmt::format("{:>{}}", row[i], widths[i]) : fmt::format("{:<{}}", row[i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

}  // namespace icp
