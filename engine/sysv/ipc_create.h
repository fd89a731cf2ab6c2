// SPDX-License-Identifier: GPL-2.0-or-later
// What the three kinds of System V objects have in common when they are made again.
#pragma once

#include <sys/types.h>

#include <functional>
#include <set>
#include <string>

#include "engine/image/image.pb.h"
#include "engine/sysv/ipc_list.h"

namespace icp {

// "System V semaphore set 3 in the image": the start of every complaint about one object.
std::string in_image(IpcKind kind, const pb::IpcPerm& perm);

// Checks what an image says of keys, ids and modes of one kind of objects. Throws kImage.
class PermCheck {
 public:
  explicit PermCheck(IpcKind kind) : kind_(kind) {}
  // Negative or doubled ids, doubled keys (other than IPC_PRIVATE), bits outside 0777.
  void check(const pb::IpcPerm& perm);

 private:
  IpcKind kind_;
  std::set<int> ids_;
  std::set<int> keys_;
};

// Makes one object as user and group, with its old id if the kernel lets us (CONFIG_CHECKPOINT_RESTORE, and the
// place is free): `get` is the *get() call, which returns an id or -1. Returns the id it got.
int create_with_id(IpcKind kind, const pb::IpcPerm& perm, uid_t uid, gid_t gid, const std::function<int()>& get);

// The fields that all kinds share, from IPC_STAT's struct ipc_perm by way of the listing.
void capture_perm(const IpcObject& object, uint32_t sequence, pb::IpcPerm& perm);

}  // namespace icp
