// SPDX-License-Identifier: GPL-2.0-or-later
// What page tables do not tell of shared memory: who on this machine maps it, forks, or frees its pages.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "engine/base/unique_fd.h"
#include "engine/broker/machine_watch.h"

namespace icp {

// Watches the whole machine (MachineWatch), and writes through descriptors of files on a mounted tmpfs by inotify(7).
// One thread.
class ObjectWatch {
 public:
  // Throws kSystem when the kernel does not offer it to this agent (no CAP_PERFMON, no tracefs).
  static std::unique_ptr<ObjectWatch> make();
  ObjectWatch(const ObjectWatch&) = delete;
  ObjectWatch& operator=(const ObjectWatch&) = delete;

  // Processors have come or gone since it was made: it does not see all of the machine any more.
  bool outdated() const;
  // The inodes that are watched from now on, each with a descriptor that stands for it. Throws kSystem.
  void set_inodes(const std::map<InodeId, int>& inodes);
  // Pages freed so far in watched inodes, and mappings made by mremap; counts all the time. The same number twice:
  // there were none in between.
  uint64_t changes() const { return machine_->changes(); }

  // Records from now on; `end` stops that and all inotify watches.
  void begin();
  void end();
  bool recording() const { return recording_; }
  // Writes to this file through descriptors are seen from now on. False when that cannot be.
  bool watch_writes(InodeId inode, const std::string& path);

  using Seen = MachineWatch::Seen;  // `touched`: mapped, or written through a descriptor
  // Adds what was seen since begin() or the last take().
  void take(Seen& seen);

 private:
  ObjectWatch() = default;
  void take_writes(Seen& seen);

  std::unique_ptr<MachineWatch> machine_;
  std::set<InodeId> inodes_;
  UniqueFd inotify_;
  std::map<int, InodeId> written_files_;  // by inotify's number
  bool recording_ = false;
};

}  // namespace icp
