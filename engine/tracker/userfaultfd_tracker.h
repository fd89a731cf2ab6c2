// SPDX-License-Identifier: GPL-2.0-or-later
// Written pages by userfaultfd's asynchronous write-protection and PAGEMAP_SCAN (Linux 6.7).
#pragma once

#include <memory>

#include "engine/base/unique_fd.h"
#include "engine/memory/page_ranges.h"
#include "engine/tracker/page_tracker.h"

namespace icp {

// The kernel write-protects pages and lifts the protection by itself at the first write; the protection bit in the
// page-table entry is the record. Nobody waits for anybody: if the agent dies, its descriptor closes and the
// protection is gone.
//
// A userfaultfd attaches to mappings, and cuts them where it is told to: it is only told while the process is stopped.
//
// Only pages that hold data are protected in private mappings, so reserves cost nothing and every page populated
// later reads as written. Shared mappings are protected whole, holes included, because their entries may be dropped
// at any time (reclaim, MADV_DONTNEED) while the data lives on.
class UserfaultfdTracker final : public PageTracker {
 public:
  // True when this kernel has all that is needed; tried on the agent's own memory.
  static bool available();
  // Makes the userfaultfd in the stopped target and takes it over. Null when the target cannot have one (a seccomp
  // filter); throws kGone when it has ended.
  static std::unique_ptr<UserfaultfdTracker> make(RemoteProcess& process);

  std::string_view name() const override { return "userfaultfd"; }
  bool incremental() const override { return true; }
  bool atomic_rearm() const override { return true; }
  bool alive() const override;
  void begin_pass(bool rearm, bool stopped) override;
  bool collect(uint64_t start, uint64_t end, MappingClass kind, bool rearm, std::vector<PageRange>& out) override;
  bool wants_mappings() const override { return !wanted_.empty(); }
  bool track_mappings(const std::vector<MapsEntry>& whole, bool all) override;

 private:
  UserfaultfdTracker(pid_t pid, UniqueFd uffd, UniqueFd pagemap);
  struct Part {
    uint64_t start, end;
    bool dense;
  };
  std::vector<Part> parts_of(uint64_t start, uint64_t end, MappingClass kind) const;
  static std::vector<Part> shares_of(const std::vector<Part>& parts);
  bool is_tracked(uint64_t page) const;
  bool attach(uint64_t start, uint64_t end);
  bool wipe(uint64_t start, uint64_t end);
  bool wipe_fresh(uint64_t start, uint64_t end);
  bool scan(Part part, Range whole, MappingClass kind, bool rearm, std::vector<PageRange>& out);
  bool scan_dense(Part part, Range whole, bool rearm, std::vector<PageRange>& out);
  void collect_untracked(uint64_t start, uint64_t end, MappingClass kind, std::vector<PageRange>& out);

  pid_t pid_;
  UniqueFd uffd_, pagemap_;
  bool stopped_ = false;
  struct Wanted {
    Range range;
    bool shared;
  };
  std::vector<Wanted> wanted_;
  std::vector<Range> fresh_;  // attached by track_mappings(), ascending; not wiped yet
  // Long runs of anonymous data found by the last pass, ascending, and by this one so far.
  std::vector<PageRange> dense_, next_dense_;
};

}  // namespace icp
