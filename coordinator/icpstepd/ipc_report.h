// SPDX-License-Identifier: GPL-2.0-or-later
// Tells icpctld's ledger which System V objects the job has on this node, and which processes have them attached. With
// `ipc: private` only: there the namespace is the job's own, and all in it is the job's.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>

#include "coordinator/protocol/asio.h"
#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

inline constexpr int kMostIpcObjects = 4096;  // of one report, which must fit a frame
inline constexpr int kMostIpcProcesses = 32;  // of one object

// All objects in the IPC namespace of a process, up to the limits above. Throws Error (kGone, kSystem).
net::IpcObjects ipc_objects_of(pid_t process);

// One thread.
class IpcReport {
 public:
  // `process`: one of the step's, 0 if there is none at the moment. `say`: to icpctld. Both must outlive this.
  IpcReport(boost::asio::io_context& io, std::function<pid_t()> process,
            std::function<void(const net::ToCoordinator&)> say);
  // The connection is new: begins to look, or forgets what was said on the one before.
  void begin_anew();

 private:
  void look();

  boost::asio::steady_timer timer_;
  std::function<pid_t()> process_;
  std::function<void(const net::ToCoordinator&)> say_;
  std::string said_;  // the last report, serialized
};

}  // namespace icp
