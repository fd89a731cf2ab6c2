// SPDX-License-Identifier: GPL-2.0-or-later
// Copying pages out of another process.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/image/page_store.h"
#include "engine/memory/page_ranges.h"

namespace icp {

// Reads with process_vm_readv, many scattered ranges a call; what that may not read (PROT_NONE) through
// /proc/PID/mem. Works on running and stopped processes. One thread.
class PageCopier {
 public:
  static constexpr size_t kChunk = 1 << 20;  // bytes a call: the copy is still in the L2 cache when it is used

  explicit PageCopier(pid_t pid) : pid_(pid) {}

  // Gives room for so many bytes (at most kChunk).
  using Allocate = std::function<std::byte*(size_t)>;
  // Takes what was read, in order.
  using Deliver = std::function<void(std::span<const Piece>)>;
  // Copies the ranges (ascending). Pages that cannot be read (unmapped meanwhile, beyond a file's end) are appended to
  // `missing`. Throws kGone when the process has ended.
  void copy(std::span<const Range> ranges, const Allocate& allocate, const Deliver& deliver,
            std::vector<Range>& missing);

 private:
  void copy_batch(std::span<const Range> batch, std::byte* to, const Deliver& deliver, std::vector<Range>& missing);
  size_t read_forced(Range range, std::byte* to);

  pid_t pid_;
  UniqueFd mem_;
};

}  // namespace icp
