// SPDX-License-Identifier: GPL-2.0-or-later
// Copying pages out of another process.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/image/page_store.h"
#include "engine/memory/page_ranges.h"
#include "engine/tracker/pagemap_reader.h"

namespace icp {

// Reads with process_vm_readv, many scattered ranges a call; what that may not read (PROT_NONE) through
// /proc/PID/mem. Works on running and stopped processes. One thread.
//
// process_vm_readv pins the pages it reads, and the kernel gives a process a copy of its own of each pinned page that
// fork() had let it share (FAULT_FLAG_UNSHARE): a version would multiply the memory of a pool of workers. With
// `has_relatives`, pages that are mapped more than once are therefore read through /proc/PID/mem, which pins nothing
// but takes longer.
class PageCopier {
 public:
  static constexpr size_t kChunk = 1 << 20;  // bytes a call: the copy is still in the L2 cache when it is used

  explicit PageCopier(pid_t pid, bool has_relatives = false) : pid_(pid), has_relatives_(has_relatives) {}

  // Gives room for so many bytes (at most kChunk).
  using Allocate = std::function<std::byte*(size_t)>;
  // Takes what was read, in order.
  using Deliver = std::function<void(std::span<const Piece>)>;
  // Copies the ranges (ascending). Pages that cannot be read (unmapped meanwhile, beyond a file's end) are appended to
  // `missing`. Throws kGone when the process has ended.
  void copy(std::span<const Range> ranges, const Allocate& allocate, const Deliver& deliver,
            std::vector<Range>& missing);

 private:
  struct Part {
    Range range;
    bool shared;  // with another process, by fork()
  };
  std::vector<Part> parts_of(std::span<const Range> batch);
  void copy_batch(std::span<const Range> batch, std::byte* to, const Deliver& deliver, std::vector<Range>& missing);
  size_t read_forced(Range range, std::byte* to);

  pid_t pid_;
  bool has_relatives_;
  UniqueFd mem_;
  std::optional<PagemapReader> pagemap_;
};

}  // namespace icp
