// SPDX-License-Identifier: GPL-2.0-or-later
#include <algorithm>

#include "engine/base/check.h"
#include "engine/image/page_index_impl.h"

namespace icp {
namespace {

void check_address(uint64_t address) {
  ICP_CHECK(address % kPageBytes == 0 && address < kAddressEnd, "{:#x} is not the address of a page", address);
}

void check_range(uint64_t start, uint64_t end) {
  ICP_CHECK(start % kPageBytes == 0 && end % kPageBytes == 0 && start <= end && end <= kAddressEnd,
            "{:#x}-{:#x} is not a range of pages", start, end);
}

using Visit = std::function<void(uint64_t, uint64_t, PageLocation)>;

// Joins pages that come by ascending address to runs.
class RunMerger {
 public:
  explicit RunMerger(const Visit& visit) : visit_(visit) {}

  void add(uint64_t address, uint64_t packed) {
    if (pages_ > 0 && address == start_ + pages_ * kPageBytes && packed == packed_ + pages_) {
      ++pages_;
      return;
    }
    flush();
    start_ = address;
    packed_ = packed;
    pages_ = 1;
  }
  void flush() {
    if (pages_ > 0) visit_(start_, pages_, unpack(packed_));
    pages_ = 0;
  }

 private:
  const Visit& visit_;
  uint64_t start_ = 0, pages_ = 0, packed_ = 0;
};

// Entries of a table at `base` that [start, end) touches, as slots [first, last).
struct SlotRange {
  unsigned first, last;
  SlotRange(int level, uint64_t base, uint64_t start, uint64_t end) {
    const uint64_t span = entry_span(level);
    first = start <= base ? 0 : static_cast<unsigned>(std::min<uint64_t>((start - base) / span, kTableEntries));
    last = end <= base ? 0 : static_cast<unsigned>(std::min<uint64_t>((end - base + span - 1) / span, kTableEntries));
  }
};

void walk(const IndexNode* node, int level, uint64_t base, uint64_t start, uint64_t end, RunMerger& merger) {
  const SlotRange slots(level, base, start, end);
  if (level == 0) {
    const auto* leaf = static_cast<const IndexLeaf*>(node);
    leaf->entries.for_each(slots.first, slots.last,
                           [&](unsigned slot, uint64_t entry) { merger.add(base + slot * kPageBytes, entry); });
    return;
  }
  const auto* table = static_cast<const IndexTable*>(node);
  table->children.for_each(slots.first, slots.last, [&](unsigned slot, const IndexNode* child) {
    walk(child, level - 1, base + slot * entry_span(level), start, end, merger);
  });
}

}  // namespace

PageIndex::Impl::~Impl() {
  if (root != nullptr) destroy(root, kIndexLevels - 1);
}

void PageIndex::Impl::destroy(IndexNode* node, int level) {
  if (level == 0) {
    delete static_cast<IndexLeaf*>(node);
    return;
  }
  auto* table = static_cast<IndexTable*>(node);
  table->children.for_each([&](unsigned, IndexNode* child) { destroy(child, level - 1); });
  delete table;
}

const IndexLeaf* PageIndex::Impl::find_leaf(uint64_t address) const {
  const IndexNode* node = root;
  for (int level = kIndexLevels - 1; level > 0 && node != nullptr; --level) {
    node = static_cast<const IndexTable*>(node)->children.at(slot_of(address, level));
  }
  return static_cast<const IndexLeaf*>(node);
}

void PageIndex::Impl::touch(IndexNode* node) {
  if (node->stored.version == 0) return;
  count_table(node->stored.version, -1);
  node->stored = {};
}

IndexLeaf* PageIndex::Impl::leaf_for_write(uint64_t address) {
  const uint64_t key = address / entry_span(1);
  if (key == last_key_) return last_leaf_;
  if (root == nullptr) root = new IndexTable;
  IndexNode* node = root;
  touch(node);
  for (int level = kIndexLevels - 1; level > 0; --level) {
    auto* table = static_cast<IndexTable*>(node);
    IndexNode*& child = table->children[slot_of(address, level)];
    if (child == nullptr) {
      child = level > 1 ? static_cast<IndexNode*>(new IndexTable) : new IndexLeaf;
      ++table->used;
    }
    node = child;
    touch(node);
  }
  last_key_ = key;
  last_leaf_ = static_cast<IndexLeaf*>(node);
  return last_leaf_;
}

void PageIndex::Impl::count_page(uint32_t version, int64_t change) {
  if (version != last_version_ || last_references_ == nullptr) {
    last_references_ = &versions[version];
    last_version_ = version;
  }
  last_references_->pages += static_cast<uint64_t>(change);
}

void PageIndex::Impl::count_table(uint32_t version, int64_t change) {
  versions[version].tables += static_cast<uint64_t>(change);
}

void PageIndex::Impl::drop_unused() {
  std::erase_if(versions, [](const auto& item) { return item.second.pages == 0 && item.second.tables == 0; });
  last_references_ = nullptr;
}

void PageIndex::Impl::set(uint64_t address, uint64_t packed) {
  // An entry that stays what it is leaves its table shared with older versions.
  if (const IndexLeaf* leaf = find_leaf(address); leaf != nullptr && leaf->entries.at(slot_of(address, 0)) == packed) {
    return;
  }
  IndexLeaf* leaf = leaf_for_write(address);
  uint64_t& entry = leaf->entries[slot_of(address, 0)];
  if (entry == 0) {
    ++leaf->used;
    ++pages;
  } else {
    count_page(packed_version(entry), -1);
  }
  entry = packed;
  count_page(packed_version(packed), +1);
}

void PageIndex::Impl::uncount_tree(IndexNode* node, int level) {
  touch(node);
  if (level > 0) {
    static_cast<IndexTable*>(node)->children.for_each(
        [&](unsigned, IndexNode* child) { uncount_tree(child, level - 1); });
    return;
  }
  static_cast<IndexLeaf*>(node)->entries.for_each(
      [&](unsigned, uint64_t entry) { count_page(packed_version(entry), -1); });
  pages -= node->used;
}

bool PageIndex::Impl::erase_in_leaf(IndexLeaf* leaf, uint64_t base, uint64_t start, uint64_t end) {
  const SlotRange slots(0, base, start, end);
  bool changed = false;
  for (unsigned slot = slots.first; slot < slots.last; ++slot) {
    uint64_t& entry = leaf->entries[slot];
    if (entry == 0) continue;
    count_page(packed_version(entry), -1);
    entry = 0;
    --leaf->used;
    --pages;
    changed = true;
  }
  if (changed) touch(leaf);
  return changed;
}

// Returns whether anything was erased; a node left empty is for the caller to remove.
bool PageIndex::Impl::erase_below(IndexNode* node, int level, uint64_t base, uint64_t start, uint64_t end) {
  if (level == 0) return erase_in_leaf(static_cast<IndexLeaf*>(node), base, start, end);
  auto* table = static_cast<IndexTable*>(node);
  const SlotRange slots(level, base, start, end);
  bool changed = false;
  for (unsigned slot = slots.first; slot < slots.last; ++slot) {
    IndexNode*& child = table->children[slot];
    if (child == nullptr) continue;
    const uint64_t child_base = base + slot * entry_span(level);
    if (start <= child_base && child_base + entry_span(level) <= end) {
      uncount_tree(child, level - 1);
      child->used = 0;
      changed = true;
    } else if (erase_below(child, level - 1, child_base, start, end)) {
      changed = true;
    }
    if (child->used == 0) {
      destroy(child, level - 1);
      child = nullptr;
      --table->used;
    }
  }
  if (changed) touch(table);
  return changed;
}

void PageIndex::Impl::erase(uint64_t start, uint64_t end) {
  if (root == nullptr || start >= end) return;
  // The last leaf may be about to go.
  if (last_key_ >= start / entry_span(1) && last_key_ <= (end - 1) / entry_span(1)) last_key_ = ~0ull;
  erase_below(root, kIndexLevels - 1, 0, start, end);
  if (root->used == 0) {
    destroy(root, kIndexLevels - 1);
    root = nullptr;
  }
}

PageIndex::PageIndex() : impl_(std::make_unique<Impl>()) {}
PageIndex::~PageIndex() = default;
PageIndex::PageIndex(PageIndex&& other) noexcept : impl_(std::move(other.impl_)) {}
PageIndex& PageIndex::operator=(PageIndex&&) noexcept = default;

PageLocation PageIndex::find(uint64_t address) const {
  check_address(address);
  const IndexLeaf* leaf = impl_->find_leaf(address);
  return leaf == nullptr ? PageLocation{} : unpack(leaf->entries.at(slot_of(address, 0)));
}

void PageIndex::set(uint64_t address, PageLocation location) {
  check_address(address);
  ICP_CHECK(location.version <= kMaxVersion && location.record <= kMaxRecord,
            "page {:#x}: version {} record {} is beyond what an index can hold", address, location.version,
            location.record);
  if (location.version == 0) {
    impl_->erase(address, address + kPageBytes);
  } else {
    impl_->set(address, pack(location));
  }
}

void PageIndex::erase(uint64_t start, uint64_t end) {
  check_range(start, end);
  impl_->erase(start, end);
}

uint64_t PageIndex::pages() const { return impl_->pages; }

template <typename Used>
std::vector<uint32_t> PageIndex::Impl::versions_with(Used used) const {
  std::vector<uint32_t> result;
  for (const auto& [version, references] : versions) {
    if (used(references)) result.push_back(version);
  }
  std::sort(result.begin(), result.end());
  return result;
}

std::vector<uint32_t> PageIndex::versions() const {
  return impl_->versions_with([](const Impl::References& r) { return r.pages > 0 || r.tables > 0; });
}

std::vector<uint32_t> PageIndex::page_versions() const {
  return impl_->versions_with([](const Impl::References& r) { return r.pages > 0; });
}

std::vector<uint32_t> PageIndex::table_versions() const {
  return impl_->versions_with([](const Impl::References& r) { return r.tables > 0; });
}

void PageIndex::for_each_run(const Visit& visit) const { for_each_run(0, kAddressEnd, visit); }

void PageIndex::for_each_run(uint64_t start, uint64_t end, const Visit& visit) const {
  check_range(start, end);
  if (impl_->root == nullptr) return;
  RunMerger merger(visit);
  walk(impl_->root, kIndexLevels - 1, 0, start, end, merger);
  merger.flush();
}

void PageIndex::for_each_run_in_file_order(uint64_t start, uint64_t end, const Visit& visit) const {
  struct Run {
    uint64_t address, pages, packed;
  };
  std::vector<Run> runs;
  for_each_run(start, end, [&runs](uint64_t address, uint64_t pages, PageLocation location) {
    runs.push_back({address, pages, pack(location)});
  });
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.packed < b.packed; });
  for (const Run& run : runs) visit(run.address, run.pages, unpack(run.packed));
}

}  // namespace icp
