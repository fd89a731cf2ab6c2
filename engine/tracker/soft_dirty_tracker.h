// SPDX-License-Identifier: GPL-2.0-or-later
// Written pages by the kernel's soft-dirty bit (/proc/PID/clear_refs, CONFIG_MEM_SOFT_DIRTY).
#pragma once

#include <set>
#include <utility>

#include "engine/tracker/page_tracker.h"
#include "engine/tracker/pagemap_reader.h"

namespace icp {

// clear_refs wipes the bits of the whole address space at once, so a pass takes a snapshot of all mappings and then
// wipes; the process must be stopped for a pass that rearms.
//
// Known to lose data in the kernel: mremap of a PMD-aligned range onto a range that was mapped before reports the
// moved pages clean (seen on 5.14, 6.1 and 6.12). A mapping that the pass before did not list with the same bounds,
// protection and file is therefore taken whole; a move exactly onto an equal mapping cannot be told apart, which is why
// this tracker comes after the others.
class SoftDirtyTracker final : public PageTracker {
 public:
  static bool available();  // tried on the agent's own memory
  explicit SoftDirtyTracker(pid_t pid);
  std::string_view name() const override { return "soft-dirty"; }
  bool incremental() const override { return true; }
  bool atomic_rearm() const override { return false; }
  bool alive() const override;
  void begin_pass(bool rearm, bool stopped) override;
  bool collect(uint64_t start, uint64_t end, MappingClass kind, bool rearm, std::vector<PageRange>& out) override;

 private:
  struct Entry {  // a page-table fact of the snapshot
    uint64_t start, end;
    bool data, file, dirty;
  };
  void snapshot(uint64_t start, uint64_t end);

  pid_t pid_;
  PagemapReader pagemap_;
  UniqueFd clear_refs_;
  std::set<std::string> known_;                       // mappings when the bits were last wiped
  std::vector<Entry> entries_;                        // ascending
  std::vector<std::pair<uint64_t, uint64_t>> fresh_;  // mappings of this pass that are not known
};

}  // namespace icp
