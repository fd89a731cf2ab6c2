// SPDX-License-Identifier: GPL-2.0-or-later
// Work that several threads share for a moment.
#pragma once

#include <cstddef>
#include <functional>

namespace icp {

// What one thread does with an item, by its number.
using ItemWork = std::function<void(size_t item)>;

inline constexpr size_t kMostThreads = 8;

// Calls `make` once in each of a few threads, the calling one among them, and what it returned for each number below
// `items` in one of them, lower numbers first. Threads: at most `most` and kMostThreads, and one for each processor
// that this one may use and that is idle now. They have the caller's credentials and file-system identity, and take no
// signals. Returns when all have ended; the first exception keeps further items from being begun, and is thrown.
void parallel_for(size_t items, size_t most, const std::function<ItemWork()>& make);

}  // namespace icp
