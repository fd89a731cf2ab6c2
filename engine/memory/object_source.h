// SPDX-License-Identifier: GPL-2.0-or-later
// Where the content of a memory object is read in one round.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"
#include "engine/sysv/segment_memory.h"

namespace icp {

// Reading is thread-safe. Offsets and sizes are bytes of the object.
class ObjectSource {
 public:
  virtual ~ObjectSource() = default;

  // Size, owner, mode, device and inode; without a descriptor only what the mapping tells, and a time of change that
  // never settles.
  const struct stat& status() const { return status_; }
  // What messages call it.
  void set_name(std::string name) { name_ = std::move(name); }
  // A descriptor of the object itself; -1 when there is none.
  virtual int fd() const { return -1; }
  // Fills `to`; what the object does not have reads as zeros. Throws Error.
  virtual void read(uint64_t offset, std::span<std::byte> to) const = 0;
  // Where data begins at or after `at`; nothing when there is none.
  virtual std::optional<uint64_t> next_data(uint64_t at) const = 0;
  // One more place where a process has it mapped.
  virtual void add_mapping(pid_t /*pid*/, const MapsEntry& /*maps*/) {}

  static std::unique_ptr<ObjectSource> of_descriptor(UniqueFd fd);
  // Shared memory that no descriptor can be had of (that takes CAP_CHECKPOINT_RESTORE): the memory of the processes
  // that map it. What none of them maps reads as zeros, and reading a hole fills it.
  static std::unique_ptr<ObjectSource> of_mapping(pid_t pid, const MapsEntry& maps);
  static std::unique_ptr<ObjectSource> of_segment(SegmentMemory segment, int id);

 protected:
  struct stat status_ {};
  std::string name_ = "shared memory";
};

}  // namespace icp
