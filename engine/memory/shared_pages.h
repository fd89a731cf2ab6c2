// SPDX-License-Identifier: GPL-2.0-or-later
// Private pages that relatives share since a fork(): stored once, whoever of them has them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/mutex.h"
#include "engine/image/image.pb.h"
#include "engine/image/image_dir.h"
#include "engine/image/page_hash.h"
#include "engine/image/page_store.h"
#include "engine/memory/page_ranges.h"

namespace icp {

// The store of a family: processes of which the kernel lets some share pages, copied when one of them writes. It holds
// a page by the address that all of them have it at. Each process (PrivateMemory) knows which of these are its own;
// what a page here holds does not change as long as anybody has it, and a process that writes to it has it no more.
//
// Pages of one address that differ, as after a second fork() of a parent that has gone on, are not both here: the later
// ones lie in the processes' own stores.
class SharedPages {
 public:
  explicit SharedPages(std::string store) : store_(std::move(store)) {}
  // Goes on from a version.
  SharedPages(const VersionReader& version, std::string store);
  // From the store of a process that has been alone so far: what that one has described, `index`, is shared now.
  SharedPages(const VersionReader& version, std::string store, PageIndex index);

  const std::string& store() const { return store_; }
  bool begun() const { return writer_ != nullptr; }
  void begin(VersionWriter& version);
  void set_compressing(bool on) { writer_->set_compressing(on); }

  // Of `pieces`, those that are here, or come here because they may be shared (Piece::may_be_shared): their ranges are
  // appended to `taken`, the other pieces to `rest`. Any number of threads.
  void put(std::span<const Piece> pieces, bool zeros_are_absent, std::vector<Range>& taken, std::vector<Piece>& rest);
  // Those of the pages at the addresses of `index`, whose content has the hashes `hashes`, that are here.
  std::vector<Range> find(const PageIndex& index, const PageHashes& hashes) const;
  // Keeps what somebody has, normalised.
  void write(const std::vector<Range>& used);
  void forget();
  void reload(const VersionReader& version);
  std::vector<Range> all() const;

  uint64_t total_pages() const { return index_.pages(); }
  bool full() const { return full_; }  // nothing was taken over from an earlier version
  uint64_t written_pages() const { return written_; }

 private:
  enum class Place : uint8_t { kElsewhere, kHere, kNew };
  Place place_of(uint64_t address, const std::byte* page, bool may_be_shared, bool zeros_are_absent);

  std::string store_;
  PageIndex index_;
  PageHashes hashes_;
  std::unique_ptr<PageStoreWriter> writer_;  // after index_: it refers to it
  Mutex mutex_;
  uint64_t written_ = 0;
  bool full_ = true;
};

// AddressSpace.shared_pages.
void save_shared_pages(const std::vector<Range>& ranges, pb::AddressSpace& memory);
// Normalised; throws kImage for what is none.
std::vector<Range> shared_pages_of(const pb::AddressSpace& memory);

}  // namespace icp
