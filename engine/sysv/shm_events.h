// SPDX-License-Identifier: GPL-2.0-or-later
// System V segments as they are made, told by our kernel module (icp_track.ko): also those of processes that are gone
// before anybody looks.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/base/unique_fd.h"

namespace icp {

// A segment that was made. Where it is, what it is, and by whom.
struct ShmCreation {
  uint64_t ipc_namespace = 0;  // inode of /proc/PID/ns/ipc
  int id = 0;
  int32_t key = 0;
  pid_t creator = 0;            // in the initial pid namespace
  int64_t time = 0;             // unix seconds
  uint64_t cgroup = 0;          // inode of the creator's cgroup (version 2)
  uint64_t cgroup_freezer = 0;  // the same in the hierarchy that has version 1's freezer
};

// One thread at a time. Events are kept by the kernel between two read()s, up to 4096 on the whole machine.
class ShmEvents {
 public:
  // From this moment on. None without the module, or on a kernel where it cannot tell.
  static std::optional<ShmEvents> watch();
  // The creations since the last call, oldest first. `lost`: further events (of any kind, of anybody) that there was no
  // room for.
  std::vector<ShmCreation> read(uint64_t& lost);

 private:
  explicit ShmEvents(UniqueFd device) : device_(std::move(device)) {}
  UniqueFd device_;
  uint64_t lost_ = 0;  // up to the last call
};

}  // namespace icp
