// SPDX-License-Identifier: GPL-2.0-or-later
// Written pages by our own kernel module, icp_track.ko (kmod/): a pass costs what was written, on kernels from 5.10.
#pragma once

#include <memory>
#include <optional>

#include "engine/base/unique_fd.h"
#include "engine/tracker/page_tracker.h"
#include "engine/tracker/pagemap_reader.h"
#include "kmod/uapi/icp_track.h"

namespace icp {

// One call to the module a pass, for the whole address space: it tells what changed, and where the mappings are. Which
// pages hold data is kept here from pass to pass, so that unwritten memory costs nothing.
//
// The module's descriptor is the tracking: it ends when the agent does, unless it is to be kept. Then it stays with the
// address space, one for all agents: there is one such tracking a process, and who goes on with it finds in its cookie
// what its last pass was saved as.
class KernelModuleTracker final : public PageTracker {
 public:
  // True when /dev/icp_track is there, speaks our version and is whole.
  static bool available();
  // Null when the module cannot track this process (no more room, no rights over its user namespace); throws kGone when
  // it has ended.
  static std::unique_ptr<KernelModuleTracker> make(pid_t pid, bool keep = false);
  // See resume_tracker().
  static std::unique_ptr<KernelModuleTracker> resume(pid_t pid, const TrackingCookie& cookie);

  std::string_view name() const override { return "kernel-module"; }
  bool incremental() const override { return true; }
  bool atomic_rearm() const override { return true; }
  bool alive() const override;
  void begin_pass(bool rearm, bool stopped) override;
  bool collect(uint64_t start, uint64_t end, MappingClass kind, bool rearm, std::vector<PageRange>& out) override;
  void saved_as(const TrackingCookie& cookie) override;

 private:
  struct Part {  // of a mapping, in the pass under way
    uint64_t start, end;
    bool tracked;  // false: new, or cannot be tracked
    bool listed;   // its pages with data are known
  };
  KernelModuleTracker(pid_t pid, UniqueFd device) : pid_(pid), device_(std::move(device)), pagemap_(pid) {}
  std::vector<icp_range> ask(bool rearm, bool all) const;
  void take(const std::vector<icp_range>& records);
  void collect_unknown(uint64_t start, uint64_t end, MappingClass kind, std::vector<PageRange>& out) const;
  void collect_private(const Part& part, MappingClass kind, std::vector<PageRange>& out) const;

  pid_t pid_;
  UniqueFd device_;
  bool kept_ = false;
  bool data_known_ = true;  // false: the next pass has to ask for unwritten pages with data, too
  PagemapReader pagemap_;
  // All ascending, of the last pass.
  std::vector<Part> parts_;
  std::vector<PageRange> data_;    // pages of private mappings that hold data
  std::vector<PageRange> shared_;  // written pages of shared mappings
};

}  // namespace icp
