// SPDX-License-Identifier: GPL-2.0-or-later
// An address in another process: never a bare pointer, so it cannot be dereferenced here by mistake.
#pragma once

#include <compare>
#include <cstdint>

namespace icp {

struct RemoteAddr {
  uint64_t value = 0;

  friend auto operator<=>(RemoteAddr, RemoteAddr) = default;
  RemoteAddr operator+(uint64_t bytes) const { return {value + bytes}; }
  uint64_t operator-(RemoteAddr other) const { return value - other.value; }
};

inline constexpr uint64_t kPageSize = 4096;  // x86-64; checked against sysconf at start
inline constexpr uint64_t page_down(uint64_t value) { return value & ~(kPageSize - 1); }
inline constexpr uint64_t page_up(uint64_t value) { return page_down(value + kPageSize - 1); }

}  // namespace icp
