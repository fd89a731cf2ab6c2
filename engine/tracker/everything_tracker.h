// SPDX-License-Identifier: GPL-2.0-or-later
// No tracking: every page that holds data counts as written. The last resort, right on every kernel.
#pragma once

#include "engine/tracker/page_tracker.h"
#include "engine/tracker/pagemap_reader.h"

namespace icp {

class EverythingTracker final : public PageTracker {
 public:
  explicit EverythingTracker(pid_t pid);
  std::string_view name() const override { return "everything"; }
  bool incremental() const override { return false; }
  // Nothing is armed, so a copy made while the process runs is worth nothing.
  bool atomic_rearm() const override { return false; }
  // Looks at whatever address space the process has now: made anew after an exec by comparing address spaces.
  bool alive() const override;
  void begin_pass(bool, bool) override {}
  bool collect(uint64_t start, uint64_t end, MappingClass kind, bool rearm, std::vector<PageRange>& out) override;

 private:
  PagemapReader pagemap_;
  pid_t pid_;
};

}  // namespace icp
