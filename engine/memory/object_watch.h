// SPDX-License-Identifier: GPL-2.0-or-later
// What page tables do not tell of shared memory: who on this machine maps it, forks, or frees its pages.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
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
// with an old size of 0, which maps shared memory once more and leaves no mmap record. Writes through descriptors of
// files on a mounted tmpfs are seen by inotify(7). One thread.
class ObjectWatch {
 public:
  // Throws kSystem when the kernel does not offer it to this agent (no CAP_PERFMON, no tracefs).
  static std::unique_ptr<ObjectWatch> make();
  ~ObjectWatch();
  ObjectWatch(const ObjectWatch&) = delete;
  ObjectWatch& operator=(const ObjectWatch&) = delete;

  // Processors have come or gone since it was made: it does not see all of the machine any more.
  bool outdated() const;
  // The inodes whose freed pages count from now on. Throws kSystem.
  void set_inodes(const std::set<InodeId>& inodes);
  // Pages freed so far in watched inodes, and mappings made by mremap; counts all the time. The same number twice:
  // there were none in between.
  uint64_t changes() const;

  // Records from now on; `end` stops that and all inotify watches.
  void begin();
  void end();
  bool recording() const { return recording_; }
  // Writes to this file through descriptors are seen from now on. False when that cannot be.
  bool watch_writes(InodeId inode, const std::string& path);

  struct Seen {
    bool complete = true;       // nothing was lost
    std::set<InodeId> touched;  // mapped, or written through a descriptor
    std::set<pid_t> forked;     // processes that have a new child
  };
  // Adds what was seen since begin() or the last take().
  void take(Seen& seen);

 private:
  struct Ring {
    UniqueFd event;
    void* memory = nullptr;
  };
  ObjectWatch() = default;
  void take_ring(const Ring& ring, Seen& seen) const;
  void take_writes(Seen& seen);

  size_t ring_bytes_ = 0;  // of records, a power of two
  std::vector<Ring> rings_;
  uint64_t removal_id_ = 0;  // the tracepoint's
  std::set<InodeId> inodes_;
  std::vector<UniqueFd> removals_, mremaps_;
  uint64_t earlier_changes_ = 0;  // counted by events that were replaced
  std::string processors_;        // as /sys names those that are online
  UniqueFd inotify_;
  std::map<int, InodeId> written_files_;  // by inotify's number
  bool recording_ = false;
};

// Which of these inodes processes map other than those in `inside` (ascending). One that cannot be looked at is taken
// to map all of them, but for the init process, which has no memory of a job. Takes 10 to 50 microseconds a process.
std::set<InodeId> mapped_outside(const std::set<InodeId>& inodes, std::span<const pid_t> inside);
// Which of these inodes any other process than this one holds a descriptor of; those that cannot be looked at as above.
std::set<InodeId> held_open(const std::set<InodeId>& inodes);

}  // namespace icp
