// SPDX-License-Identifier: GPL-2.0-or-later
// What an ObjectWatch has seen of shared memory, by version, pass and stop: whether anybody but the mappers that are
// tracked can have written to an object since they were armed.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "engine/base/error.h"
#include "engine/memory/object_watch.h"

namespace icp {

// Without a watch, because the kernel offers none or it has failed, nothing is seen: recording() is false, count() is
// nothing, and alone() says no. One thread.
class WatchScope {
 public:
  // `lost`: what was armed under the watch there was is not known any more.
  explicit WatchScope(std::function<void()> lost) : lost_(std::move(lost)) {}
  WatchScope(const WatchScope&) = delete;
  WatchScope& operator=(const WatchScope&) = delete;

  void begin_version();  // forgets who else has the objects
  // Records from now on, up to end(). `processes`: those of the capsule, ascending.
  void record(std::vector<pid_t> processes);
  bool recording() const { return watch_ && watch_->recording(); }
  void end();
  // Makes the watch, which counts even when it does not record.
  void count_changes();

  void start_pass();
  // What has been seen up to now counts as seen since the mappings of the last pass were read.
  void take();
  void forget_seen() { seen_ = {}; }
  // The inodes that are watched from now on, each with a descriptor that stands for it.
  void set_inodes(const std::map<InodeId, int>& inodes);

  // Of pages taken out of watched objects: now, and when the pass began. Nothing without a watch.
  std::optional<uint64_t> count() const { return watch_ ? std::optional(watch_->changes()) : std::nullopt; }
  std::optional<uint64_t> count_at_pass() const { return pass_count_; }
  void set_count_at_pass() { pass_count_ = count(); }

  struct Candidate {
    InodeId inode;
    int source;               // a descriptor of it
    bool writes_are_noticed;  // through descriptors
  };
  // Who has the objects already will not be seen to come. Goes through /proc: not for the stop.
  void find_others(const std::vector<Candidate>& candidates);
  bool is_checked(const InodeId& inode) const { return checked_.count(inode) != 0; }
  // Nobody else had it to begin with, and whoever begins to write to it is seen.
  bool alone(const InodeId& inode) const;
  // Since the last pass: nobody has mapped it, or written to it through a descriptor, and nothing has been missed.
  bool untouched(const InodeId& inode) const { return seen_.complete && seen_.touched.count(inode) == 0; }
  bool has_forked(pid_t pid) const { return seen_.forked.count(pid) != 0; }

 private:
  void make();
  void drop();
  void fail(const Error& error);

  std::function<void()> lost_;
  std::unique_ptr<ObjectWatch> watch_;  // null: not offered, or not asked for yet
  bool failed_ = false;
  std::optional<uint64_t> pass_count_;
  std::vector<pid_t> processes_;
  ObjectWatch::Seen seen_;
  std::set<InodeId> checked_, others_;  // looked at in this version; that others have, too
};

}  // namespace icp
