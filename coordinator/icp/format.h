// SPDX-License-Identifier: GPL-2.0-or-later
// Numbers, times and tables for people. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/printable.h"

namespace icp {

inline constexpr uint64_t kNsInMs = 1'000'000;

std::string with_commas(uint64_t value);            // "12,345"
std::string human_bytes(uint64_t bytes);            // "812 B", "48.2 MiB"
std::string human_time(uint64_t nanoseconds);       // "850 us", "3.1 ms", "0.21 s"
std::string local_time(uint64_t unix_nanoseconds);  // "2026-08-01 12:00:00" in the local time zone
std::string utc_time(uint64_t unix_nanoseconds);    // "2026-08-01T12:00:00.123Z", for programs

// "1 page", "2 pages", "12,345 pages".
std::string counted(uint64_t count, std::string_view noun, std::string_view plural = {});

// Columns as wide as their widest cell, two spaces apart.
class Table {
 public:
  // A column whose title begins with '>' is flush right.
  explicit Table(std::vector<std::string> titles);
  void add(std::vector<std::string> row);  // missing cells are empty
  std::string text() const;

 private:
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace icp
