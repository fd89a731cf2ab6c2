// SPDX-License-Identifier: GPL-2.0-or-later
// Descriptors that only the process itself can make, since what they are about has its old number there alone.
#pragma once

#include "engine/files/file_kind.h"
#include "engine/trace/tracee.h"

namespace icp {

// A process of the capsule in which calls can be made; null: there is none of this number.
RemoteProcess* process_of(const RestoreContext& context, uint32_t pid);
// icp-init, which is in the capsule's namespaces with its user's rights. Throws for the file when there is none.
RemoteProcess& init_of(const RestoreContext& context, const pb::OpenFile& file);

// A child of the process that never runs, for descriptors about one that has ended: nothing can be learnt of that any
// more, so one is like another. Its number is free again before any thread needs it.
class BriefChild {
 public:
  explicit BriefChild(RemoteProcess& remote);
  uint64_t number() const { return number_; }  // in the capsule
  void end();

 private:
  RemoteProcess& remote_;
  uint64_t number_;
  pid_t pid_;  // the agent's view
  Tracee thread_;
};

// A kind each of whose descriptions is made by the process that has it.
class MadeInsideKind : public SingleFileKind {
 public:
  void create(RestoreContext& context, ImageFiles files) const final;
  void finish(FinishContext& context, const pb::FileDescriptor& descriptor, const pb::OpenFile& file) const final;

 private:
  // Numbers of an image that cannot be. Throws kImage.
  virtual void check_image(const pb::OpenFile&) const {}
  // Makes one in the process: its number there, whatever that is.
  virtual uint64_t make(RemoteProcess& remote, const pb::OpenFile& file) const = 0;
  UniqueFd create_one(RestoreContext&, const pb::OpenFile&) const final { return {}; }
};

// Moves what the process has made to where the image has it.
void move_to(RemoteProcess& remote, uint64_t made, const pb::FileDescriptor& descriptor);

// Another descriptor of what the process has made already, for one that comes later in its table. False: this is the
// first. Processes that shared the description get one each.
bool duplicate_made(FinishContext& context, const pb::FileDescriptor& descriptor);

}  // namespace icp
