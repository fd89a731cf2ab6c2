// SPDX-License-Identifier: GPL-2.0-or-later
// Memory below a stopped thread's stack pointer, for a while.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/trace/remote_addr.h"

namespace icp {

// What is borrowed of one process at the same time. Stacks of a few KiB may lie side by side: what one thread borrows
// is then below another's stack pointer, too. Not thread-safe.
class BorrowedRanges {
 public:
  // False, with nothing noted, when some of it is borrowed already.
  bool add(RemoteAddr at, size_t bytes);

 private:
  std::map<uint64_t, uint64_t> ranges_;  // end by start
};

// What remote calls need in the process lies where a signal's frame would lie. That is not always nobody's: a program
// whose handlers have a stack of their own (SA_ONSTACK; Go is one) may run on stacks of a few KiB, with other data
// below. So what was there is put back, by give_back() or the destructor, before the thread goes on, and before its
// memory is looked at. Should the agent die in between (well below a millisecond), such a program has lost it.
class BorrowedStack {
 public:
  // Writes `content` at `at`. Null, with nothing changed, when the memory there cannot be read and written. Throws
  // kGone when the process has ended.
  static std::shared_ptr<BorrowedStack> borrow(pid_t pid, RemoteAddr at, std::span<const std::byte> content);
  BorrowedStack(const BorrowedStack&) = delete;
  BorrowedStack& operator=(const BorrowedStack&) = delete;
  ~BorrowedStack() { give_back(); }

  // Fails only if the process has ended.
  void give_back() noexcept;

 private:
  BorrowedStack(pid_t pid, RemoteAddr at, size_t bytes) : pid_(pid), at_(at), saved_(bytes) {}
  pid_t pid_;
  RemoteAddr at_;
  std::vector<std::byte> saved_;  // empty: nothing to give back
};

}  // namespace icp
