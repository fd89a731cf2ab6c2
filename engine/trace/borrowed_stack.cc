// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/trace/borrowed_stack.h"

#include <sys/uio.h>

#include <cerrno>
#include <iterator>

#include "engine/base/error.h"

namespace icp {
namespace {

// All of it in one call, or not.
template <typename Transfer>
bool move_all(Transfer transfer, pid_t pid, RemoteAddr at, const std::byte* local, size_t bytes) {
  const iovec here{const_cast<std::byte*>(local), bytes}, there{reinterpret_cast<void*>(at.value), bytes};
  return transfer(pid, &here, 1, &there, 1, 0) == static_cast<ssize_t>(bytes);
}

}  // namespace

bool BorrowedRanges::add(RemoteAddr at, size_t bytes) {
  const uint64_t start = at.value, end = start + bytes;
  const auto next = ranges_.lower_bound(start);
  if (next != ranges_.end() && next->first < end) return false;
  if (next != ranges_.begin() && std::prev(next)->second > start) return false;
  ranges_.emplace(start, end);
  return true;
}

std::shared_ptr<BorrowedStack> BorrowedStack::borrow(pid_t pid, RemoteAddr at, std::span<const std::byte> content) {
  std::shared_ptr<BorrowedStack> borrowed(new BorrowedStack(pid, at, content.size()));
  errno = 0;
  if (!move_all(::process_vm_readv, pid, at, borrowed->saved_.data(), content.size())) {
    borrowed->saved_.clear();
    if (errno == ESRCH) throw_error(ErrorKind::kGone, "process {} has ended", pid);
    return nullptr;
  }
  // If only a part could be written, the destructor puts that back.
  if (!move_all(::process_vm_writev, pid, at, content.data(), content.size())) return nullptr;
  return borrowed;
}

void BorrowedStack::give_back() noexcept {
  if (!saved_.empty()) move_all(::process_vm_writev, pid_, at_, saved_.data(), saved_.size());
  saved_.clear();
}

}  // namespace icp
