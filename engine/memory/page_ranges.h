// SPDX-License-Identifier: GPL-2.0-or-later
// Sorted lists of address ranges.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace icp {

// Bytes [start, end), page aligned.
struct Range {
  uint64_t start = 0, end = 0;
  uint64_t bytes() const { return end - start; }
  friend auto operator<=>(const Range&, const Range&) = default;
};

// Appends to an ascending list, merging with its last range.
inline void append_range(std::vector<Range>& ranges, Range range) {
  if (range.start >= range.end) return;
  if (!ranges.empty() && ranges.back().end >= range.start) {
    ranges.back().end = std::max(ranges.back().end, range.end);
  } else {
    ranges.push_back(range);
  }
}

// Sorts and merges.
inline void normalise(std::vector<Range>& ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.start < b.start; });
  std::vector<Range> merged;
  merged.reserve(ranges.size());
  for (const Range& range : ranges) append_range(merged, range);
  ranges = std::move(merged);
}

// The following take normalised lists.

// Calls `visit(Range, inside)` for consecutive parts of `range` that lie inside or outside of `set`, in order.
inline void split_by(const Range& range, std::span<const Range> set, const std::function<void(Range, bool)>& visit) {
  auto it = std::partition_point(set.begin(), set.end(), [&](const Range& r) { return r.end <= range.start; });
  uint64_t at = range.start;
  for (; it != set.end() && it->start < range.end; ++it) {
    if (at < it->start) visit({at, it->start}, false);
    const uint64_t from = std::max(at, it->start), to = std::min(range.end, it->end);
    if (from < to) visit({from, to}, true);
    at = to;
  }
  if (at < range.end) visit({at, range.end}, false);
}

inline std::vector<Range> intersect(std::span<const Range> a, std::span<const Range> b) {
  std::vector<Range> both;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    append_range(both, {std::max(a[i].start, b[j].start), std::min(a[i].end, b[j].end)});
    if (a[i].end < b[j].end)
      ++i;
    else
      ++j;
  }
  return both;
}

inline std::vector<Range> subtract(std::span<const Range> a, std::span<const Range> b) {
  std::vector<Range> rest;
  size_t j = 0;
  for (Range range : a) {
    while (j < b.size() && b[j].end <= range.start) ++j;
    for (size_t k = j; k < b.size() && b[k].start < range.end; ++k) {
      if (range.start < b[k].start) append_range(rest, {range.start, b[k].start});
      range.start = std::max(range.start, std::min(b[k].end, range.end));
    }
    append_range(rest, range);
  }
  return rest;
}

inline uint64_t total_bytes(std::span<const Range> ranges) {
  uint64_t bytes = 0;
  for (const Range& range : ranges) bytes += range.bytes();
  return bytes;
}

}  // namespace icp
