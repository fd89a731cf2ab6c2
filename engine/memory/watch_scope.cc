// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/watch_scope.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "engine/broker/broker.h"

namespace icp {

void WatchScope::begin_version() {
  checked_.clear();
  others_.clear();
}

void WatchScope::make() {
  if (watch_ && watch_->outdated()) drop();
  if (watch_ || failed_) return;
  try {
    watch_ = ObjectWatch::make();
  } catch (const Error& error) {
    fail(error);
  }
}

void WatchScope::drop() {
  watch_.reset();
  pass_count_.reset();
  lost_();
}

void WatchScope::fail(const Error& error) {
  drop();
  failed_ = true;
  spdlog::info("shared memory that is written is read whole in each stop: {}", error.what());
}

void WatchScope::record(std::vector<pid_t> processes) {
  if (recording()) return;
  make();
  if (!watch_) return;
  try {
    watch_->begin();
  } catch (const Error& error) {
    fail(error);
  }
  processes_ = std::move(processes);
  seen_ = {};
}

void WatchScope::end() {
  if (watch_) watch_->end();
}

void WatchScope::count_changes() {
  if (!recording()) make();
}

void WatchScope::start_pass() {
  take();
  set_count_at_pass();
}

void WatchScope::take() {
  if (recording()) watch_->take(seen_);
}

void WatchScope::set_inodes(const std::map<InodeId, int>& inodes) {
  if (!watch_) return;
  try {
    watch_->set_inodes(inodes);
  } catch (const Error& error) {
    fail(error);
  }
}

void WatchScope::find_others(const std::vector<Candidate>& candidates) {
  if (!recording()) return;
  std::map<InodeId, int> all, without_notice;  // with a descriptor
  for (const auto& [inode, source, writes_are_noticed] : candidates) {
    if (is_checked(inode)) continue;
    all.emplace(inode, source);
    if (!writes_are_noticed) {
      without_notice.emplace(inode, source);
    } else if (!watch_->watch_writes(inode, fmt::format("/proc/self/fd/{}", source))) {
      others_.insert(inode);
    }
  }
  if (all.empty()) return;
  try {
    others_.merge(broker().mapped_outside(all, processes_));
    if (!without_notice.empty()) others_.merge(broker().held_open(without_notice));
  } catch (const Error& error) {
    fail(error);
    return;
  }
  for (const auto& [inode, source] : all) checked_.insert(inode);
}

bool WatchScope::alone(const InodeId& inode) const {
  return recording() && is_checked(inode) && others_.count(inode) == 0;
}

}  // namespace icp
