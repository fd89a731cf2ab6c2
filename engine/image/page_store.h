// SPDX-License-Identifier: GPL-2.0-or-later
// Page data and page index of one address space or memory object, over its versions.
//
// A store has a name ("task_mm_4711", "object_3"). In each version that has it there are
//   <name>.<version>.idx   the page-table-shaped index (docs/image-format.md)
//   <name>.<version>.bin   page records, appended in the order they are put, perhaps compressed, then a table of
//                          hashes, one per record; no such file when the version wrote no page of the store
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace icp {

class PageHashes;
class VersionReader;
class VersionWriter;

// Where a page lies. version 0: nowhere (the page holds zeros or its file's content).
struct PageLocation {
  uint32_t version = 0;
  uint64_t record = 0;  // number of the record in that version's page file
  friend bool operator==(PageLocation, PageLocation) = default;
};

// Consecutive pages, and a copy of what they hold (whole pages).
struct Piece {
  uint64_t address = 0;
  std::span<const std::byte> bytes;
  bool may_be_shared = false;  // with another process, by fork(): nothing to the store itself
};

// Page-table-shaped radix tree: 4 levels of 512 entries for 48-bit addresses; an entry is reached in
// O(1); tables exist only where pages do. Not thread-safe; const members are safe side by side.
class PageIndex {
 public:
  PageIndex();
  ~PageIndex();
  PageIndex(PageIndex&&) noexcept;
  PageIndex& operator=(PageIndex&&) noexcept;

  // Addresses are multiples of 4096 below 2^48; anything else throws kUsage.
  PageLocation find(uint64_t address) const;
  void set(uint64_t address, PageLocation location);
  // Pages [start, end) hold nothing of their own any more.
  void erase(uint64_t start, uint64_t end);
  uint64_t pages() const;  // number of pages with a location
  // Versions whose files the index refers to (for pages or for unchanged tables), ascending.
  std::vector<uint32_t> versions() const;
  // Versions in whose page files pages lie, and in whose index files tables do; ascending.
  std::vector<uint32_t> page_versions() const;
  std::vector<uint32_t> table_versions() const;

  // Calls `visit(address, pages, location)` for maximal runs with consecutive addresses and records of one
  // version, by ascending address.
  void for_each_run(const std::function<void(uint64_t, uint64_t, PageLocation)>& visit) const;
  // The same within [start, end).
  void for_each_run(uint64_t start, uint64_t end,
                    const std::function<void(uint64_t, uint64_t, PageLocation)>& visit) const;
  // The runs within [start, end) ordered by version and record instead of address: whoever reads many pages reads each
  // file once, front to back, however many versions there are.
  void for_each_run_in_file_order(uint64_t start, uint64_t end,
                                  const std::function<void(uint64_t, uint64_t, PageLocation)>& visit) const;

  struct Impl;  // page_index_impl.h

 private:
  friend class PageIndexFile;
  std::unique_ptr<Impl> impl_;
};

// Writes one store into the version being made. The index passed in describes the previous version and is
// brought up to date as pages come; tables that do not change are not written again.
//
// put() may be called again for a page within the version (a later pre-copy round): the record is
// overwritten in place, never mixed; where it is compressed already, or the file large, a new record takes its place in
// the index and the old one is in the file for nothing. I/O happens as the thread's current file-system identity.
//
// With `hashes` (of what the index says, as far as they are known; kept up to date) a page that holds what it held in
// an older version is not stored again.
//
// `version` and `index` must outlive the writer and stay where they are. When the version is not committed, the index
// describes files that do not exist: throw it away, the next version of the store is a full one. One thread, but for
// put() and set_compressing().
class PageStoreWriter {
 public:
  // kUsage for a bad name, or an index that already refers to this version or a later one.
  PageStoreWriter(VersionWriter& version, std::string name, PageIndex& index, PageHashes* hashes = nullptr);
  ~PageStoreWriter();

  // Stores pages. Those of zeros are erased from the index instead when `zeros_are_absent` (anonymous memory; over a
  // file's content they count). The bytes must not change during the call: checksum and data would differ. Any number
  // of threads side by side, as long as no page is given twice before all have returned. Pieces that follow one another
  // in memory cost one write.
  void put(std::span<const Piece> pieces, bool zeros_are_absent);
  void put(uint64_t address, std::span<const std::byte> bytes, bool zeros_are_absent);
  // Pages [start, end) hold nothing of their own any more.
  void erase(uint64_t start, uint64_t end);
  // Whether to compress from now on, where the version has compression at all. Not while processes wait.
  void set_compressing(bool on);
  // Hash table and index; records both files and what they need in the version. Nothing may be put afterwards.
  void finish();

  uint64_t records() const;

 private:
  struct Impl;
  class Placement;
  std::unique_ptr<Impl> impl_;
};

// Reads one store of a committed version. Every offset and checksum is checked; kImage names file and
// offset of what is wrong.
class PageStoreReader {
 public:
  // Loads the index as of `version`.
  PageStoreReader(const VersionReader& version, std::string name);
  ~PageStoreReader();
  PageStoreReader(PageStoreReader&&) noexcept;

  const PageIndex& index() const;
  PageIndex take_index();  // for the session that goes on from here

  // Another reader of the same store, for another thread; its index is empty.
  PageStoreReader sibling() const;

  // Reads `pages` records from `location` on into `to` (pages * 4096 bytes) and verifies them. One thread at a time.
  void read(PageLocation location, uint64_t pages, std::span<std::byte> to);
  // The two halves of it, for who reads past records that are not wanted: reads without verifying, and verifies.
  void read_unverified(PageLocation location, uint64_t pages, std::span<std::byte> to);
  // Consecutive records from `location` on to several places (at most IOV_MAX) of whole pages each.
  void read_unverified(PageLocation location, std::span<const iovec> to);
  void verify(PageLocation location, std::span<const std::byte> pages);
  // The hashes of all pages, as the page files have them: no page is read.
  void load_hashes(PageHashes& hashes);

 private:
  struct Impl;
  explicit PageStoreReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace icp
