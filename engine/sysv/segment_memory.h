// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <memory>

#include "engine/base/unique_fd.h"

namespace icp {

// The memory of a System V segment: `bytes` from `start` on of what `fd` is, for reading and, where the segment's mode
// allows it, writing. With start 0 it is a file of the segment alone, whose holes stay holes when it is read; else the
// memory of a process that has it attached as long as `attached` lives.
struct SegmentMemory {
  std::shared_ptr<void> attached;
  UniqueFd fd;
  uint64_t start = 0, bytes = 0;
};

}  // namespace icp
