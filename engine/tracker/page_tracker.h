// SPDX-License-Identifier: GPL-2.0-or-later
// Finding the pages a process has written: one interface, several kernels.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace icp {

class RemoteProcess;
struct MapsEntry;

// Names what the passes of a tracker were saved in, for a tracking that outlives its agent; all zeros: nothing.
using TrackingCookie = std::array<uint64_t, 2>;

// What lies behind a mapping decides what its page-table entries say.
enum class MappingClass {
  kAnonymous,    // private anonymous: a page is data when it is present or swapped, zeros when it is neither
  kPrivateFile,  // private mapping of a file or of shared memory: only pages copied on write are data
  kShared,       // MAP_SHARED: contents live in the object, entries come and go; only writes are of interest
};

// Pages [start, end), bytes, page aligned.
struct PageRange {
  uint64_t start = 0, end = 0;
  bool written = false;  // written, or not known to be unwritten, since the range was last collected
  bool zero = false;     // the kernel's shared zero page: nothing to copy
};

// The pages of one address space. A tracker never misses a write: whatever it cannot know it reports as
// written. It only speaks of page tables: memory shared with others, and writes that bypass the page
// table (descriptors, DMA), are the caller's business (engine/memory).
//
// Life: made when an address space is first seen; `begin_pass` and `collect` any number of times; gone when the
// object is destroyed or the process ends or execs (then alive() is false). Not thread-safe.
class PageTracker {
 public:
  virtual ~PageTracker() = default;

  // "kernel-module", "userfaultfd", "soft-dirty", "everything".
  virtual std::string_view name() const = 0;
  // True when collect can tell written from unwritten pages.
  virtual bool incremental() const = 0;
  // True when rearming is atomic per page, hence safe while the process runs. Otherwise collect with `rearm` is for
  // stopped processes.
  virtual bool atomic_rearm() const = 0;
  // False when the address space this was made for is gone (exit, exec): everything it says is void then. Exact only
  // while the process is stopped.
  virtual bool alive() const = 0;

  // Starts a pass over all mappings: the collects up to the next begin_pass belong together. With `stopped`, the
  // process is, and stays so until the last of them: only then are their bounds sure to be those of whole mappings.
  virtual void begin_pass(bool rearm, bool stopped) = 0;
  // Scans [start, end), which should lie within one mapping, and appends pages to `out`, ascending, merged:
  // kAnonymous and kPrivateFile: every page that holds private data, with what is known about it;
  // kShared: only pages that may have been written through this mapping, whether present or not.
  // With `rearm` the pages reported are tracked afresh from this moment on: a write during the call is reported now or
  // by the next call, never lost. A range that was not tracked yet (new mapping, moved, fork child) is reported whole
  // as written, and tracked from now on, but for what wants_mappings() says. Returns false when (part of) the range was
  // not tracked before.
  virtual bool collect(uint64_t start, uint64_t end, MappingClass kind, bool rearm, std::vector<PageRange>& out) = 0;

  // True when collect, while the process ran, has met mappings that are not tracked yet. A tracker that attaches itself
  // to mappings must not do so with bounds which the process may have changed meanwhile: cut in two, they would make
  // its next mremap(2) fail. track_mappings(), with the process stopped, tracks those.
  virtual bool wants_mappings() const { return false; }
  // `whole`: mappings as they are at this moment. With `all` all of them are tracked from now on.
  // True when there was shared memory among them.
  virtual bool track_mappings(const std::vector<MapsEntry>& whole, bool all) {
    static_cast<void>(whole);
    static_cast<void>(all);
    return false;
  }

  // All passes so far are saved in what `cookie` names: who finds that name later may go on from there. Nothing without
  // make_tracker()'s `keep`.
  virtual void saved_as(const TrackingCookie& cookie) { static_cast<void>(cookie); }
};

// Appends, merging with the last one.
inline void append_page_range(std::vector<PageRange>& out, const PageRange& range) {
  if (!out.empty() && out.back().end == range.start && out.back().written == range.written &&
      out.back().zero == range.zero) {
    out.back().end = range.end;
  } else {
    out.push_back(range);
  }
}

enum class TrackerKind { kAuto, kKernelModule, kUserfaultfd, kSoftDirty, kEverything };

// What this kernel offers, best first (checked once by trying, thread-safe).
std::vector<TrackerKind> available_trackers();
std::string_view to_string(TrackerKind kind);
TrackerKind parse_tracker(std::string_view name);  // kUsage on an unknown name

// Makes a tracker for a stopped process (userfaultfd needs system calls in it). kAuto takes the best that
// works for this process; another kind throws kRefused if it cannot be had. With `keep` the tracking goes on when the
// tracker is gone, where the kernel can do that (kernel-module), until the address space ends.
std::unique_ptr<PageTracker> make_tracker(TrackerKind kind, RemoteProcess& process, bool keep = false);

// A tracking that an earlier agent kept, when its passes up to now were saved as `cookie`: says "written" of what was
// written since. Null when there is none. The process may run.
std::unique_ptr<PageTracker> resume_tracker(TrackerKind kind, pid_t pid, const TrackingCookie& cookie);

}  // namespace icp
