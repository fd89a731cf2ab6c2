// SPDX-License-Identifier: GPL-2.0-or-later
// Inner part of Session, shared with RestoredCapsule, which starts one in the middle of an image.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/files/kept_files.h"
#include "engine/files/saved_directories.h"
#include "engine/memory/lazy_fill.h"
#include "engine/memory/memory_capture.h"
#include "engine/process/control_groups.h"
#include "engine/process/stopped_tree.h"
#include "engine/session.h"
#include "engine/sysv/ipc_access.h"
#include "engine/sysv/sysv_ipc.h"

namespace icp {

struct Session::Impl {
  Impl(SessionConfig session_config, std::vector<TaskRoot> session_roots);

  std::vector<ProcessRef> processes() const;
  std::vector<pid_t> root_pids() const;
  bool is_root(pid_t pid) const;
  void open_ipc(pid_t process);
  bool alive() const;
  CheckpointResult checkpoint(const CheckpointOptions& options);
  // Creates the image, and makes sure that nobody else takes versions into it as long as this session lives.
  ImageDir claim(const std::string& path);

  // Phases of a version.
  // Before a version: the chain may have been folded or pruned since the last one (session_chain.cc), or may be that of
  // another image.
  void follow_chain(const ImageDir& image);
  void forget_chain();
  // Before the first version: goes on from the latest one with trackings that an earlier session kept.
  void resume_kept(const ImageDir& image);
  void prepare(VersionWriter& writer, const CheckpointOptions& options);
  void collect(StoppedTree& tree, pb::Capsule& capsule, const NetworkScope& network);
  CheckpointResult write_version(VersionWriter& writer, uint64_t begin, const CheckpointOptions& options,
                                 NetworkScope network);

  std::vector<OuterStreamId> outer() const;
  void describe_tasks(const std::vector<ProcessRef>& stopped, pb::Capsule& capsule) const;
  SysvScope sysv_scope(const std::vector<StoppedProcess>& stopped) const;
  void capture_undo(std::vector<StoppedProcess>& stopped, const std::vector<pb::Process*>& states,
                    const pb::Capsule& capsule);

  SessionConfig config;
  std::vector<TaskRoot> roots;
  std::vector<uint64_t> root_start_times;  // with the pids, the roots' identity
  int64_t start_seconds = 0;               // System V objects made before are not the capsule's
  InterruptedCalls calls;
  MemoryCapture memory;
  KeptFiles kept_files;
  ControlGroups control_groups;
  SavedDirectories directories;
  uint32_t last_version = 0;
  std::map<std::string, UniqueFd> claims;  // of images, by path
  std::string last_image;                  // the path of the image that holds it
  bool kept_looked_for = false;
  std::shared_ptr<LazyFill> lazy;  // memory of a restart that may not be there yet
  std::shared_ptr<IpcAccess> ipc;  // of the namespace `ipc_space`, a link of /proc/PID/ns
  std::string ipc_space;
  bool ipc_restored = false;  // it is that of a restored capsule, and whole the capsule's
  bool untracked = false;     // it is there by now, and has been written to unseen
};

}  // namespace icp
