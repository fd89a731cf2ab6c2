// SPDX-License-Identifier: GPL-2.0-or-later
// System V shared memory segments; their contents are the memory module's.
#pragma once

#include <cstddef>
#include <span>

#include "engine/image/image.pb.h"
#include "engine/sysv/ipc_list.h"
#include "engine/sysv/ipc_namespace.h"

namespace icp {

// A segment attached in the agent, read-only or for writing, for the memory module. Detaches itself. Writing through
// bytes() of a read-only one faults. A segment marked for removal can still be attached (Linux; shmat(2)), and dies
// with the last detach.
class AttachedSegment {
 public:
  AttachedSegment(int shmid, bool writable);  // in the calling thread's IPC namespace
  ~AttachedSegment();
  AttachedSegment(AttachedSegment&& other) noexcept;
  AttachedSegment& operator=(AttachedSegment&&) = delete;
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

// False when the segment is gone meanwhile.
bool capture_segment(const IpcObject& object, pb::ShmSegment& segment);

// Throws kImage when the segments are not such as this host could hold.
void check_segments(const pb::SysvIpc& state, const IpcLimits& limits);
// Makes an empty segment; returns its id.
int create_segment(const pb::ShmSegment& segment, uid_t uid, gid_t gid);

}  // namespace icp
