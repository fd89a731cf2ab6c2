// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/shared_pages.h"

#include "engine/base/error.h"
#include "engine/memory/mapping_check.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

// A number of AddressSpace.shared_pages: pages left out since the one before, then pages that are there.
constexpr unsigned kCountBits = 24;
constexpr uint64_t kMostCount = (1ull << kCountBits) - 1;

}  // namespace

SharedPages::SharedPages(const VersionReader& version, std::string store) : store_(std::move(store)) {
  PageStoreReader reader(version, store_);
  reader.load_hashes(hashes_);
  index_ = reader.take_index();
}

SharedPages::SharedPages(const VersionReader& version, std::string store, PageIndex index)
    : store_(std::move(store)), index_(std::move(index)) {
  PageStoreReader(version, store_).load_hashes(hashes_);
}

void SharedPages::begin(VersionWriter& version) {
  full_ = index_.pages() == 0;
  writer_ = std::make_unique<PageStoreWriter>(version, store_, index_);
}

// Under the lock. A new page is known by its hash at once: another process's thread may come with it before it is
// stored.
SharedPages::Place SharedPages::place_of(uint64_t address, const std::byte* page, bool may_be_shared,
                                         bool zeros_are_absent) {
  const PageHash known = hashes_.find(address);
  const bool empty = known == PageHash{};
  if (empty && (!may_be_shared || (zeros_are_absent && is_zero_page(page)))) return Place::kElsewhere;
  const PageHash hash = hash_page(page);
  if (!empty) return known == hash ? Place::kHere : Place::kElsewhere;
  hashes_.set(address, hash);
  return Place::kNew;
}

void SharedPages::put(std::span<const Piece> pieces, bool zeros_are_absent, std::vector<Range>& taken,
                      std::vector<Piece>& rest) {
  std::vector<Piece> fresh;
  {
    const MutexLock lock(mutex_);
    for (const Piece& piece : pieces) {
      for (size_t at = 0; at < piece.bytes.size(); at += kPageSize) {
        const uint64_t address = piece.address + at;
        const Place place = place_of(address, piece.bytes.data() + at, piece.may_be_shared, zeros_are_absent);
        if (place != Place::kElsewhere) append_range(taken, {address, address + kPageSize});
        if (place == Place::kHere) continue;
        std::vector<Piece>& list = place == Place::kNew ? fresh : rest;
        const bool follows = !list.empty() && list.back().address + list.back().bytes.size() == address &&
                             list.back().bytes.data() + list.back().bytes.size() == piece.bytes.data() + at;
        if (follows) {
          list.back().bytes = {list.back().bytes.data(), list.back().bytes.size() + kPageSize};
        } else {
          list.push_back({address, piece.bytes.subspan(at, kPageSize), piece.may_be_shared});
        }
      }
    }
  }
  if (!fresh.empty()) writer_->put(fresh, false);
}

std::vector<Range> SharedPages::find(const PageIndex& index, const PageHashes& hashes) const {
  std::vector<Range> found;
  index.for_each_run([&](uint64_t address, uint64_t pages, PageLocation) {
    for (uint64_t i = 0; i < pages; ++i, address += kPageSize) {
      const PageHash hash = hashes_.find(address);
      if (hash != PageHash{} && hash == hashes.find(address)) append_range(found, {address, address + kPageSize});
    }
  });
  return found;
}

std::vector<Range> SharedPages::all() const {
  std::vector<Range> ranges;
  index_.for_each_run([&](uint64_t address, uint64_t pages, PageLocation) {
    append_range(ranges, {address, address + pages * kPageSize});
  });
  return ranges;
}

void SharedPages::write(const std::vector<Range>& used) {
  const std::vector<Range> unused = subtract(all(), used);
  for (const Range& range : unused) {
    writer_->erase(range.start, range.end);
    for (uint64_t at = range.start; at < range.end; at += kPageSize) hashes_.set(at, {});
  }
  writer_->finish();
  written_ = writer_->records();
  writer_.reset();
}

void SharedPages::forget() {
  writer_.reset();
  index_ = PageIndex();
  hashes_.clear();
}

void SharedPages::reload(const VersionReader& version) {
  writer_.reset();
  index_ = PageStoreReader(version, store_).take_index();
}

void save_shared_pages(const std::vector<Range>& ranges, pb::AddressSpace& memory) {
  uint64_t at = 0;
  for (const Range& range : ranges) {
    uint64_t pages = range.bytes() / kPageSize, gap = range.start / kPageSize - at;
    at = range.end / kPageSize;
    for (; pages > 0; gap = 0) {
      const uint64_t count = std::min(pages, kMostCount);
      memory.add_shared_pages(gap << kCountBits | count);
      pages -= count;
    }
  }
}

std::vector<Range> shared_pages_of(const pb::AddressSpace& memory) {
  constexpr uint64_t kLastPage = kUserSpaceEnd / kPageSize;
  std::vector<Range> ranges;
  uint64_t page = 0;
  for (const uint64_t number : memory.shared_pages()) {
    page += number >> kCountBits;
    const uint64_t count = number & kMostCount;
    if (count == 0 || page > kLastPage || count > kLastPage - page)
      throw_error(ErrorKind::kImage, "damaged image: impossible pages of {}", memory.shared_index());
    append_range(ranges, {page * kPageSize, (page + count) * kPageSize});
    page += count;
  }
  return ranges;
}

}  // namespace icp
