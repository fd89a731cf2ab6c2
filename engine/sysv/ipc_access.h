// SPDX-License-Identifier: GPL-2.0-or-later
// System V objects of a capsule, in whichever IPC namespace it is.
#pragma once

#include <sys/types.h>

#include <memory>
#include <vector>

#include "engine/base/identity.h"
#include "engine/base/unique_fd.h"
#include "engine/sysv/ipc_list.h"
#include "engine/sysv/segment_memory.h"
#include "engine/sysv/sysv_ipc.h"

namespace icp {

// What is done with the objects of one namespace. One thread. All throw Error.
class IpcAccess {
 public:
  virtual ~IpcAccess() = default;

  virtual std::vector<IpcObject> list() = 0;                          // list_ipc_objects()
  virtual std::vector<IpcObject> select(const SysvScope& scope) = 0;  // select_objects()
  // capture_sysv()
  virtual void capture(const std::vector<IpcObject>& objects, pb::SysvIpc& state) = 0;
  // restore_sysv(), finish_sysv()
  virtual RestoredSysv restore(const pb::Capsule& capsule, uid_t uid, gid_t gid) = 0;
  virtual void finish(const pb::Capsule& capsule, const RestoredSysv& restored) = 0;
  // kGone when there is no such segment any more. Not to be used when this object is gone.
  virtual SegmentMemory open_segment(int id) = 0;

  // By entering the namespace for each call (CAP_SYS_ADMIN in the user namespace that owns it), unless it is this
  // process's own.
  static std::unique_ptr<IpcAccess> enter(UniqueFd namespace_fd);
  // Through a helper that is in the namespace: serve_ipc() at the other end of `socket`.
  static std::unique_ptr<IpcAccess> through(UniqueFd socket);
};

// The helper: answers until the other end is closed. In the calling process's namespace, with its rights; what comes
// over the socket may be hostile as far as these go.
void serve_ipc(int socket) noexcept;

}  // namespace icp
