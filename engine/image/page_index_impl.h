// SPDX-License-Identifier: GPL-2.0-or-later
// The radix tree inside PageIndex, shared by page_index.cc and page_index_file.cc.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "engine/image/image_layout.h"
#include "engine/image/page_store.h"
#include "engine/image/table_entries.h"

namespace icp {

inline constexpr int kIndexLevels = 4;  // 0: leaves, 3: the root
inline constexpr unsigned kTableBits = 9;
inline constexpr unsigned kTableEntries = 1u << kTableBits;
inline constexpr uint64_t kAddressEnd = 1ull << 48;

// Bytes covered by one entry of a table of `level`.
constexpr uint64_t entry_span(int level) { return kPageBytes << (kTableBits * static_cast<unsigned>(level)); }
constexpr unsigned slot_of(uint64_t address, int level) {
  return static_cast<unsigned>(address / entry_span(level)) % kTableEntries;
}

// A page's location in 64 bits; 0 is nowhere. Consecutive records of a version are consecutive numbers.
constexpr uint64_t pack(PageLocation location) {
  return static_cast<uint64_t>(location.version) << 40 | location.record;
}
constexpr uint32_t packed_version(uint64_t packed) { return static_cast<uint32_t>(packed >> 40); }
constexpr PageLocation unpack(uint64_t packed) { return {packed_version(packed), packed & ((1ull << 40) - 1)}; }

// Where a table's block was last written. version 0: nowhere, the table has changed since.
struct StoredTable {
  uint32_t version = 0;
  uint32_t length = 0;  // bytes
  uint64_t offset = 0;  // in <name>.<version>.idx
};

// A table's level follows from its depth, so a node does not know its own type: whoever walks counts the level down,
// and PageIndex::Impl::destroy() frees by level. A table that changed (stored.version 0) has only changed ancestors.
struct IndexNode {
  StoredTable stored;
  uint32_t used = 0;  // entries that are not empty
};

struct IndexLeaf : IndexNode {
  TableEntries<uint64_t, kTableEntries> entries;
};

struct IndexTable : IndexNode {
  TableEntries<IndexNode*, kTableEntries> children;
};

struct PageIndex::Impl {
  struct References {
    uint64_t pages = 0;
    uint64_t tables = 0;
  };

  IndexTable* root = nullptr;  // null: no page
  uint64_t pages = 0;
  // What refers to each version: makes a manifest's list of needed versions exact without a walk. Entries with
  // nothing left are dropped by drop_unused().
  std::unordered_map<uint32_t, References> versions;

  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl();

  const IndexLeaf* find_leaf(uint64_t address) const;
  // The leaf of an address, made where missing, it and its ancestors marked as changed.
  IndexLeaf* leaf_for_write(uint64_t address);
  void set(uint64_t address, uint64_t packed);
  void erase(uint64_t start, uint64_t end);
  void touch(IndexNode* node);
  // Counts one page more (+1) or less (-1).
  void count_page(uint32_t version, int64_t change);
  void count_table(uint32_t version, int64_t change);
  void drop_unused();
  // After the tables were stored: the next write has to mark its leaf as changed again.
  void forget_last_leaf() { last_key_ = ~0ull; }
  void destroy(IndexNode* node, int level);
  template <typename Used>
  std::vector<uint32_t> versions_with(Used used) const;

 private:
  bool erase_below(IndexNode* node, int level, uint64_t base, uint64_t start, uint64_t end);
  bool erase_in_leaf(IndexLeaf* leaf, uint64_t base, uint64_t start, uint64_t end);
  void uncount_tree(IndexNode* node, int level);

  // Writes come by ascending address: the last leaf serves most of them. Never a leaf that is unchanged.
  uint64_t last_key_ = ~0ull;
  IndexLeaf* last_leaf_ = nullptr;
  uint32_t last_version_ = 0;
  References* last_references_ = nullptr;  // nodes of an unordered_map stay where they are
};

}  // namespace icp
