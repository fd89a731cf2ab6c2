// SPDX-License-Identifier: GPL-2.0-or-later
// The entries of one table of a page index: all of them side by side while they change, and packed when they do not. A
// file of some bytes stands for a table with one page, or with 512 in a row; in memory each is a run then, so that what
// an index takes there is not many times what it has on the disk.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

namespace icp {

// `Entry`: a number, where 0 is nothing and the next page mostly has the next number, or a pointer.
template <typename Entry, unsigned kEntries>
class TableEntries {
 public:
  using All = std::array<Entry, kEntries>;

  Entry at(unsigned slot) const {
    if (all_) return (*all_)[slot];
    const Run *const begin = runs_.get(), *const end = begin + count_;
    const Run* run = std::upper_bound(begin, end, slot, [](unsigned at, const Run& one) { return at < one.slot; });
    if (run == begin) return Entry{};
    --run;
    return slot - run->slot < run->length ? plus(run->first, slot - run->slot) : Entry{};
  }
  // For a change. Good until pack().
  Entry& operator[](unsigned slot) {
    unpack();
    return (*all_)[slot];
  }
  void set_all(const All& all) {
    runs_.reset();
    count_ = 0;
    all_ = std::make_unique<All>(all);
    pack();
  }
  // In order, those that are not empty.
  template <typename Visit>
  void for_each(unsigned first, unsigned last, const Visit& visit) const {
    if (all_) {
      for (unsigned slot = first; slot < last; ++slot)
        if ((*all_)[slot] != Entry{}) visit(slot, (*all_)[slot]);
      return;
    }
    for (unsigned i = 0; i < count_; ++i) {
      const Run& run = runs_[i];
      const unsigned begin = std::max<unsigned>(first, run.slot), end = std::min<unsigned>(last, run.slot + run.length);
      for (unsigned slot = begin; slot < end; ++slot) visit(slot, plus(run.first, slot - run.slot));
    }
  }
  template <typename Visit>
  void for_each(const Visit& visit) const {
    for_each(0, kEntries, visit);
  }
  All all() const {
    if (all_) return *all_;
    All all{};
    for_each([&all](unsigned slot, Entry entry) { all[slot] = entry; });
    return all;
  }
  bool operator==(const TableEntries& other) const { return all() == other.all(); }
  // Where that takes less room.
  void pack() {
    if (!all_) return;
    std::vector<Run> runs;
    for (unsigned slot = 0; slot < kEntries; ++slot) {
      const Entry entry = (*all_)[slot];
      if (entry == Entry{}) continue;
      if (!runs.empty() && slot == runs.back().slot + runs.back().length &&
          entry == plus(runs.back().first, runs.back().length)) {
        ++runs.back().length;
      } else {
        if ((runs.size() + 1) * sizeof(Run) > sizeof(All) / 2) return;
        runs.push_back({entry, static_cast<uint16_t>(slot), 1});
      }
    }
    runs_ = std::make_unique<Run[]>(runs.size());
    std::copy(runs.begin(), runs.end(), runs_.get());
    count_ = static_cast<unsigned>(runs.size());
    all_.reset();
  }

 private:
  struct Run {
    Entry first{};
    uint16_t slot = 0, length = 0;
  };
  static Entry plus(Entry entry, unsigned by) {
    if constexpr (std::is_pointer_v<Entry>) {
      return by == 0 ? entry : nullptr;  // no pointer follows from another one
    } else {
      return entry + by;
    }
  }
  void unpack() {
    if (all_) return;
    all_ = std::make_unique<All>(all());
    runs_.reset();
    count_ = 0;
  }

  std::unique_ptr<All> all_;
  std::unique_ptr<Run[]> runs_;  // by slot, when all_ is not there
  unsigned count_ = 0;
};

}  // namespace icp
