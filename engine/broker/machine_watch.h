// SPDX-License-Identifier: GPL-2.0-or-later
// Who on this machine maps files, forks, or frees pages of files.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"

namespace icp {

// An inode as the kernel's records name it.
struct InodeId {
  uint64_t dev = 0, ino = 0;  // dev: as in stat(2)
  friend auto operator<=>(const InodeId&, const InodeId&) = default;
};
inline InodeId inode_id(const struct stat& status) { return {status.st_dev, status.st_ino}; }

// Watches the whole machine through perf_event_open(2): records of every mmap and fork (PERF_RECORD_MMAP2 and
// PERF_RECORD_FORK of a dummy event on each processor), and two counts by tracepoints: pages taken out of the page
// cache of the watched inodes (holes punched, truncation: filemap:mm_filemap_delete_from_page_cache), and mremap(2)
// with an old size of 0, which maps shared memory once more and leaves no mmap record. One thread.
class MachineWatch {
 public:
  virtual ~MachineWatch() = default;

  // Processors have come or gone since it was made: it does not see all of the machine any more.
  virtual bool outdated() const = 0;
  // The inodes that are watched from now on, each with a descriptor that stands for it. Throws kSystem.
  virtual void set_inodes(const std::map<InodeId, int>& inodes) = 0;
  // Pages freed so far in watched inodes, and mappings made by mremap; counts all the time. The same number twice:
  // there were none in between.
  virtual uint64_t changes() const = 0;
  // Records from now on, until `end`.
  virtual void begin() = 0;
  virtual void end() = 0;

  struct Seen {
    bool complete = true;       // nothing was lost
    std::set<InodeId> touched;  // mapped
    std::set<pid_t> forked;     // processes that have a new child
    // Of each; what is more is let go, and nothing is complete any more.
    static constexpr size_t kMost = 1 << 20;
  };
  // Adds what was seen since begin() or the last take().
  virtual void take(Seen& seen) = 0;

  // By this process's own rights. Throws kSystem where the kernel does not offer it (no CAP_PERFMON, no tracefs).
  static std::unique_ptr<MachineWatch> make();
};

}  // namespace icp
