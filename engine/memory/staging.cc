// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/staging.h"

#include <sys/mman.h>

#include <algorithm>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr size_t kHugePage = 2 << 20;   // bytes
constexpr int kMadvPopulateWrite = 23;  // Linux 5.14

size_t round_up(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

}  // namespace

StagingArena::StagingArena(size_t limit) : limit_(round_up(std::max<size_t>(limit, kHugePage))) {
  void* base = ::mmap(nullptr, limit_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) throw_errno("cannot reserve {} bytes for page copies", limit_);
  base_ = static_cast<std::byte*>(base);
  ::madvise(base_, limit_, MADV_HUGEPAGE);
  ::madvise(base_, limit_, MADV_DONTDUMP);  // other people's memory does not belong into our core file
}

StagingArena::~StagingArena() { ::munmap(base_, limit_); }

std::byte* StagingArena::allocate(size_t bytes) {
  if (bytes > limit_ - used_) {
    overflowed_ = true;
    return nullptr;
  }
  std::byte* at = base_ + used_;
  used_ += bytes;
  touched_ = std::max(touched_, std::min(limit_, round_up(used_)));
  return at;
}

void StagingArena::prepare(size_t bytes) {
  const size_t want = std::min(limit_, round_up(bytes));
  if (want <= touched_) return;
  ::madvise(base_ + touched_, want - touched_, kMadvPopulateWrite);  // only costs time if it fails
  touched_ = want;
}

void StagingArena::reset(size_t keep) {
  used_ = 0;
  overflowed_ = false;
  const size_t limit = std::min(limit_, round_up(keep));
  if (touched_ <= limit) return;
  ::madvise(base_ + limit, touched_ - limit, MADV_DONTNEED);
  touched_ = limit;
}

}  // namespace icp
