// SPDX-License-Identifier: GPL-2.0-or-later
// One process of a capsule, from a seed to the moment before it runs.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "engine/base/identity.h"
#include "engine/files/file_table.h"
#include "engine/image/image.pb.h"
#include "engine/memory/memory_restore.h"
#include "engine/process/control_groups.h"
#include "engine/process/scheduling.h"
#include "engine/process/stopped_tree.h"
#include "engine/restore/tree_builder.h"
#include "engine/sysv/sysv_ipc.h"

namespace icp {

// What all processes of a restore share. Outlives the ProcessRestore objects.
struct RestoreShared {
  const pb::Capsule& capsule;
  bool of_root;  // a job of root's, restored for root
  TreeBuilder& builder;
  MemoryRestore& memory;
  FileRestore& files;
  ControlGroupRestore& groups;
  const RestoredSysv& sysv;
  const Identity& identity;
  int socket_number;  // where the descriptor-carrying socket lies in every process: above all saved descriptors
  const std::map<uint32_t, CpuBinding>& bindings;  // by pid in the capsule
  bool go_on;                                      // also those that were stopped: the step was suspended
  bool dry;                                        // see RestoreOptions
};

// The steps are separate because some need all processes to have reached them. Until run() nothing of the process has
// executed; if this object is destroyed before, its owner kills the capsule.
class ProcessRestore {
 public:
  ProcessRestore(const RestoreShared& shared, const pb::Process& state);

  // Mappings; then, with the memory of all processes filled (MemoryRestore::fill_pages()), descriptors, threads,
  // attributes, limits. With root's rights still.
  void map_memory();
  void finish_memory();
  void build();
  // The process as a stopped one, for trackers.
  StoppedProcess& stopped() { return stopped_; }
  const pb::Process& state() const { return state_; }
  // Gives root's rights up and sets what needs the user's.
  void drop_rights();
  // Pending signals and timers.
  void finish();
  // For a stopped child, closed and with its registers set, whose stop this process has been told of: lets it go, and
  // takes the news of its stop.
  void take_stop_of(ProcessRestore& child);
  // What takes away from what the process may do; our trampoline goes. No call can be made in it afterwards.
  void close();
  // Registers and masks, then lets all threads go (nothing for one that runs already).
  void set_registers();
  void run() noexcept;
  // The task's terminal may have another size than the one before: SIGWINCH, as at a change of size.
  void tell_size() const noexcept;

 private:
  void move_socket();
  void install_descriptors();
  void enter_removed_directory();
  void make_threads();
  void give_up_rights();
  void set_what_ids_clear();
  void restore_filters(bool suspended);
  RemoteProcess& remote() { return *stopped_.remote; }

  const RestoreShared& shared_;
  const pb::Process& state_;
  StoppedProcess stopped_;
  MemoryRestore::Trampoline trampoline_;
  bool in_directory_ = false;  // the working directory is entered
};

}  // namespace icp
