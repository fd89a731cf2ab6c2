// SPDX-License-Identifier: GPL-2.0-or-later
// The steps that a batch script's MPI launcher starts (launch/stand_in.h): the agent of the script has srun called for
// them, and calls it again after a restart. Their capsules belong to the script's versions.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/icpstepd/watched_socket.h"
#include "coordinator/protocol/packet.h"
#include "engine/base/unique_fd.h"
#include "engine/files/file_table.h"
#include "engine/image/image.pb.h"

namespace icp {

// "node2.launch1": what a node of a launched step is called in the script's versions; `number` 0: the script's own.
std::string launched_capsule(const std::string& node, uint32_t number);
// The number in such a name; 0: none.
uint32_t launch_in_name(const std::string& capsule);

// Not thread-safe. Of a step that is no batch script all members do nothing.
class LaunchedSteps {
 public:
  LaunchedSteps(boost::asio::io_context& io, uint32_t job) : io_(io), job_(job) {}

  // For the answer to the script's task (kRun, kRestart), which starts the launcher: `directory` holds this release's
  // programs, `image` is the script's. Throws Error. The packet's descriptors are the caller's to close.
  void begin(protocol::Packet& answer, const std::string& directory, const std::string& image);
  // What a version says that is about to be restored: before begin(), which has srun called again for each.
  // `image`: where it lies.
  void restore(const pb::Capsule& capsule, const std::string& image);
  // The new ends for the restored stand-ins: RestoreOptions::launched.
  std::map<int, int> restored_ends() const;
  // The stand-ins run again.
  void restored();
  // Throws kGone when srun has ended for a step that is being restored: nobody need wait for it.
  void check_restored();

  // True from the first launched step on.
  bool any() const { return !steps_.empty(); }
  size_t running() const { return steps_.size(); }
  // Processes that are no part of what is saved: the launcher and what it has started.
  bool is_outside(pid_t pid) const;
  // For a session: see SessionConfig.
  std::vector<OuterStreamId> streams() const;
  void describe(pb::Capsule& capsule) const;

 private:
  struct Step {
    std::string request;           // encoded launch::Request
    std::unique_ptr<Socket> here;  // to the stand-in
    UniqueFd theirs;               // until the stand-in is restored
    uint64_t dev = 0, ino = 0;     // of the stand-in's end
    bool ended = false;
  };
  void listen();
  void on_connection();
  void take_request(int connection);
  void make_sockets(Step& step) const;
  void launch(uint32_t number, const std::string& restart_dir) const;
  void on_stand_in(uint32_t number);
  void on_launcher();
  bool hear_launcher();
  void ended(uint32_t number, int status);

  boost::asio::io_context& io_;
  const uint32_t job_;
  std::string name_;                   // of the socket where stand-ins ask
  std::string image_, restored_from_;  // directories of versions
  std::unique_ptr<Socket> listener_, launcher_;
  pid_t launcher_pid_ = 0;
  std::map<uint32_t, Step> steps_;  // by number; without those that have ended
  uint32_t last_ = 0;               // number
};

}  // namespace icp
