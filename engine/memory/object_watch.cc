// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/object_watch.h"

#include <sys/inotify.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "engine/base/error.h"
#include "engine/broker/broker.h"

namespace icp {

std::unique_ptr<ObjectWatch> ObjectWatch::make() {
  std::unique_ptr<ObjectWatch> watch(new ObjectWatch);
  watch->machine_ = broker().watch_machine();
  watch->inotify_.reset(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!watch->inotify_) throw_errno("inotify_init1");
  return watch;
}

bool ObjectWatch::outdated() const { return machine_->outdated(); }

void ObjectWatch::set_inodes(const std::map<InodeId, int>& inodes) {
  std::set<InodeId> names;
  for (const auto& [inode, fd] : inodes) names.insert(inode);
  if (names == inodes_) return;
  machine_->set_inodes(inodes);
  inodes_ = std::move(names);
}

void ObjectWatch::begin() {
  if (recording_) return;
  machine_->begin();
  recording_ = true;
  Seen before;
  take(before);
}

void ObjectWatch::end() {
  if (!recording_) return;
  machine_->end();
  for (const auto& [number, inode] : written_files_) ::inotify_rm_watch(inotify_.get(), number);
  written_files_.clear();
  recording_ = false;
}

bool ObjectWatch::watch_writes(InodeId inode, const std::string& path) {
  const int number = ::inotify_add_watch(inotify_.get(), path.c_str(), IN_MODIFY);
  if (number < 0) return false;
  written_files_[number] = inode;
  return true;
}

void ObjectWatch::take_writes(Seen& seen) {
  alignas(inotify_event) std::array<std::byte, 4096> buffer;
  for (;;) {
    const ssize_t got = ::read(inotify_.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      if (got < 0 && errno != EAGAIN) seen.complete = false;
      return;
    }
    for (size_t at = 0; at < static_cast<size_t>(got);) {
      inotify_event event{};
      std::memcpy(&event, buffer.data() + at, sizeof event);
      const auto file = written_files_.find(event.wd);
      if ((event.mask & IN_Q_OVERFLOW) != 0) seen.complete = false;
      if (file != written_files_.end()) seen.touched.insert(file->second);
      at += sizeof event + event.len;
    }
  }
}

void ObjectWatch::take(Seen& seen) {
  machine_->take(seen);
  take_writes(seen);
}

}  // namespace icp
