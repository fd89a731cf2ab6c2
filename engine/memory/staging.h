// SPDX-License-Identifier: GPL-2.0-or-later
// Memory of the agent that holds page copies between the stop and the writing.
#pragma once

#include <cstddef>
#include <span>

namespace icp {

// A bump allocator over one reserve of address space. Memory once touched is kept for the next version, since the
// first touch costs more than the copy itself; prepare() touches it ahead of the stop. One thread.
class StagingArena {
 public:
  explicit StagingArena(size_t limit);  // bytes
  ~StagingArena();
  StagingArena(const StagingArena&) = delete;
  StagingArena& operator=(const StagingArena&) = delete;

  // Null when the limit would be exceeded.
  std::byte* allocate(size_t bytes);
  // Gives back the last `bytes` allocated.
  void give_back(size_t bytes) { used_ -= bytes; }
  // Touches room for `bytes` altogether.
  void prepare(size_t bytes);
  // Forgets all copies. Keeps at most `keep` bytes of memory.
  void reset(size_t keep);
  size_t used() const { return used_; }
  // Something did not fit since the last reset().
  bool overflowed() const { return overflowed_; }

 private:
  std::byte* base_ = nullptr;
  size_t limit_ = 0, used_ = 0, touched_ = 0;
  bool overflowed_ = false;
};

}  // namespace icp
