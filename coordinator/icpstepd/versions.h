// SPDX-License-Identifier: GPL-2.0-or-later
// The versions of one step on this node: what libicp's session is told, and what is said about its results.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/config.h"
#include "coordinator/icpstepd/cgroups.h"
#include "coordinator/icpstepd/coordinator_link.h"
#include "coordinator/icpstepd/notices.h"
#include "coordinator/protocol/packet.h"
#include "engine/base/error.h"
#include "engine/session.h"

namespace icp {

struct TaskStreams {
  int rank = 0;
  std::array<StreamId, 3> streams;
  StreamId pmi;      // the connection to MPI's process manager; mode 0: none
  std::string cpus;  // a cpu_set_t: the processors that Slurm gives the task
};

// For a version after which Slurm ends the processes: they stay stopped until it does, and nothing that they would have
// done is lost, or done twice.
struct Hold {
  std::function<void()> begun;    // the version is there
  std::function<bool()> goes_on;  // asked now and then; false: they are to run on
  bool over = false;              // they do
};

// One thread: the one that calls take() must have called begin() (ptrace).
class Versions {
 public:
  // `launched` says how many steps of the script's MPI launcher run (LaunchedSteps).
  Versions(const protocol::StepFacts& facts, const Config& config, Notices& notices, std::function<size_t()> launched)
      : facts_(facts), config_(config), notices_(notices), launched_(std::move(launched)) {}

  // What a session of this step is told, with its image at `image`.
  SessionConfig session_config(const std::string& image, const std::vector<TaskStreams>& tasks) const;
  void begin(Session session, std::string image);
  bool begun() const { return session_ != nullptr; }
  // A batch script that has begun steps: those get versions, it does not.
  bool left_to_steps() const { return begun() && script_has_steps(); }
  std::vector<pid_t> roots() const {  // the step's tasks
    std::vector<pid_t> pids;
    if (session_)
      for (const TaskRoot& root : session_->roots()) pids.push_back(root.pid);
    return pids;
  }
  // One version now. A failure is told to the user (once) and logged; the processes run on. True: it failed for
  // something that passes (a process ended or was made at the wrong moment), and is worth another try soon.
  bool take(Hold* hold = nullptr);
  // One version as part of a round of the coordinator, which hears of each phase through `link`, and of a failure. The
  // processes run on whatever happens, but for a round that kills them. Returns the image that got the version; empty:
  // none was taken, or it was given up.
  std::string take(const net::BeginRound& begin, CoordinatorLink& link, Hold* hold = nullptr);
  // Those taken last, oldest first.
  const std::deque<net::VersionNumbers>& recent() const { return recent_; }
  // Where the version goes that is being taken.
  const std::string& taken_in() const { return chosen_image_.empty() ? image_ : chosen_image_; }
  void stop() { session_.reset(); }

 private:
  bool script_has_steps() const;
  Suspension suspension();
  const char* nothing_to_save();
  CoordinatorLink::Wanted while_it_runs() const;
  std::vector<ConnectionEnd> connections_inside(const std::vector<ConnectionEnd>& ends, bool stopped);
  void hold_until_ended(Hold& hold) const;
  void wait_for_kill(CoordinatorLink& link, uint64_t round, std::chrono::milliseconds timeout) const;
  std::string end_round(const std::string& image);
  void check_launched(const net::BeginRound& begin) const;
  void report(const CheckpointResult& result);
  bool failed(const Error& error);
  void run_site_script(int error) const;
  std::string choose_image(const net::BeginRound& begin, net::PhaseDone& done) const;
  void keep_newest() const;

  const protocol::StepFacts& facts_;
  const Config& config_;
  Notices& notices_;
  const std::function<size_t()> launched_;
  std::unique_ptr<Session> session_;
  bool suspended_told_ = false;   // that there are none
  bool suspended_taken_ = false;  // a version since Slurm has suspended the step
  std::string image_;             // the step's own
  std::string chosen_image_;      // of the round under way, if that is another one
  std::deque<net::VersionNumbers> recent_;
  const net::BeginRound* round_ = nullptr;  // under way
  CoordinatorLink* link_ = nullptr;
  bool surveyed_ = false;       // in this round
  int transient_failures_ = 0;  // one after the other
};

// "4 processes, 1.2 GiB"
std::string counted_bytes(uint64_t processes, uint64_t bytes);

}  // namespace icp
