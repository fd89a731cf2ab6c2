// SPDX-License-Identifier: GPL-2.0-or-later
// /proc/PID/pagemap entry by entry (Documentation/admin-guide/mm/pagemap.rst), for kernels without PAGEMAP_SCAN.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <span>

#include "engine/base/unique_fd.h"

namespace icp {

inline constexpr uint64_t kPagemapSoftDirty = 1ull << 55;
inline constexpr uint64_t kPagemapExclusive = 1ull << 56;  // no other page table has the page
inline constexpr uint64_t kPagemapFileOrShared = 1ull << 61;
inline constexpr uint64_t kPagemapSwapped = 1ull << 62;
inline constexpr uint64_t kPagemapPresent = 1ull << 63;

class PagemapReader {
 public:
  explicit PagemapReader(pid_t pid);  // throws kGone, kSystem
  // Calls `visit(address, entries)` for consecutive pages of [start, end), in order.
  void read(uint64_t start, uint64_t end, const std::function<void(uint64_t, std::span<const uint64_t>)>& visit) const;

 private:
  pid_t pid_;
  UniqueFd pagemap_;
};

}  // namespace icp
