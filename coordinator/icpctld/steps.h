// SPDX-License-Identifier: GPL-2.0-or-later
// The steps whose agents are connected: when each is due for a version, the rounds under way, and what came of them.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "coordinator/config.h"
#include "coordinator/icpctld/catalog.h"
#include "coordinator/icpctld/fair_queue.h"
#include "coordinator/icpctld/restart.h"
#include "coordinator/icpctld/round.h"
#include "coordinator/protocol/asio.h"
#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

// How a version was asked for.
struct VersionRequest {
  bool kill = false;
  uint32_t signal = 0;                    // not 0: Slurm has sent it, and it waits; at once, whoever else writes
  std::string image_dir;                  // another one than the step's own; empty: that
  bool renumbered = false;                // a second try, because the number of the first one was taken there
  std::chrono::milliseconds max_wait{0};  // for the whole version; 0: the configured time-outs
  // Called once with Slurm's code and a text (0: committed). Before a round that kills does so, `before_kill` must call
  // its argument: with an empty text to go on, else with why not. May be empty.
  std::function<void(uint32_t code, const std::string& text)> finished;
  std::function<void(std::function<void(const std::string& why)>)> before_kill;
};

// One step, from its first agent to its last. Owned by Steps.
class Step {
 public:
  using Clock = std::chrono::steady_clock;

  StepFactsRecord facts;
  std::map<std::string, std::function<void(const net::ToPeer&)>> agents;  // by node
  std::map<std::string, net::AgentHello> hellos;
  std::map<std::string, net::IpcObjects> ipc;
  // Nodes of the step itself (0) and of the steps that its MPI launcher has started, by their number, while they run.
  // facts.nodes is the sum.
  std::map<uint32_t, uint32_t> parts;
  uint32_t highest_version = 0;
  std::unique_ptr<Round> round;
  std::unique_ptr<Restart> restart;
  std::chrono::system_clock::time_point round_began;
  std::chrono::system_clock::time_point next_due;
  std::chrono::milliseconds longest{0};                   // of the versions taken
  std::map<std::string, std::chrono::milliseconds> idle;  // nodes whose processes do nothing, and for how long
  bool hung = false;                                      // all of them, as was told
  std::set<std::string> held;  // nodes whose processes have not run since the last version, nor will they

  // All agents are there, and the processes run.
  bool complete() const { return agents.size() == facts.nodes && !restart && parts.contains(0); }
  bool ends_with_version() const { return held.size() >= facts.nodes; }

 private:
  friend class Steps;
  explicit Step(boost::asio::io_context& io) : due_timer_(io), phase_timer_(io), missing_timer_(io) {}

  boost::asio::steady_timer due_timer_, phase_timer_, missing_timer_;
  std::map<std::string, std::string> gone_;  // by node: why its agent is not there any more
  Clock::time_point due_, latest_;           // latest_: the end of max_wait
  std::optional<VersionRequest> request_;    // of the round under way or waiting
  bool waiting_ = false;                     // for a writer's place
  bool killing_ = false;
  uint32_t near_ = 0;               // a signal came while a round was under way: another one follows
  net::Phase watched_ = net::NONE;  // the phase that phase_timer_ limits
  int transient_failures_ = 0;
  UserBudget told_;  // of versions that a lone agent tells
};

// One thread.
class Steps {
 public:
  using SendToAgent = std::function<void(const net::ToPeer&)>;

  // `missing`: how long agents of a step may be away, as after a restart of icpctld, before its user is told.
  static constexpr std::chrono::milliseconds kMissing{20'000};
  Steps(boost::asio::io_context& io, const Config& config, Catalog& catalog,
        std::chrono::milliseconds missing = kMissing);

  // Nothing when the hello makes no sense or contradicts what other agents of the step said (`why`).
  std::shared_ptr<Step> agent_came(const net::AgentHello& hello, SendToAgent send, std::string& why);
  void agent_left(const std::shared_ptr<Step>& step, const std::string& node, const std::string& reason);
  void agent_said(const std::shared_ptr<Step>& step, const std::string& node, const net::ToCoordinator& message);

  // The steps of a job that run now; of one step when given.
  std::vector<std::shared_ptr<Step>> running(uint32_t job, std::optional<int32_t> step) const;
  const std::map<StepKey, std::shared_ptr<Step>>& all() const { return steps_; }
  // Takes a version as soon as a place is free. Slurm's code: 0 when it was accepted.
  uint32_t create(const std::shared_ptr<Step>& step, VersionRequest wanted);
  bool is_disabled(const Step& step) const;
  void set_config(const Config& config) { config_ = config; }

  // Called when no agent of a run of a job is left, and when a step cannot be restored.
  struct Events {
    std::function<void(const StepFactsRecord& step)> run_ended;
    std::function<void(const StepFactsRecord& step, const std::string& why)> restart_failed;
    // No process of a step has done anything for that long.
    std::function<void(const StepFactsRecord& step, std::chrono::milliseconds idle)> hung;
  };
  void set_events(Events events) { events_ = std::move(events); }

  struct Counters {
    uint64_t committed = 0, failed = 0, bytes = 0;
    uint64_t stop_ns = 0, total_ns = 0;  // sums
  };
  const Counters& counters() const { return counters_; }
  size_t rounds_under_way() const { return writers_; }

 private:
  std::function<void(const std::string&, const net::ToPeer&)> sender(const std::shared_ptr<Step>& step) const;
  static bool add_part(Step& step, const net::AgentHello& hello);
  static void part_left(Step& step, uint32_t launched);
  void settled(const std::shared_ptr<Step>& step);
  void record_run(const Step& step);
  void version_at_signal(const std::shared_ptr<Step>& step, uint32_t signal, uint64_t after_round);
  void watch_missing(const std::shared_ptr<Step>& step);
  void tell_missing(Step& step);
  void plan_next(const std::shared_ptr<Step>& step);
  void due(const std::shared_ptr<Step>& step);
  void begin_or_wait(const std::shared_ptr<Step>& step);
  void begin(const std::shared_ptr<Step>& step);
  void watch_phase(const std::shared_ptr<Step>& step);
  void advanced(const std::shared_ptr<Step>& step);
  void finished(const std::shared_ptr<Step>& step);
  void free_place();
  void next_writer();
  void record_known_versions(Step& step);
  void held(Step& step, const std::string& node, bool held);
  void record_held(const Step& step);
  void idle(Step& step, const std::string& node, std::chrono::milliseconds idle);

  boost::asio::io_context& io_;
  Config config_;
  Catalog& catalog_;
  const std::chrono::milliseconds missing_;
  std::map<StepKey, std::shared_ptr<Step>> steps_;
  std::deque<std::weak_ptr<Step>> waiting_;
  size_t writers_ = 0;
  uint64_t next_round_;
  std::minstd_rand random_;
  Counters counters_;
  Events events_;
};

}  // namespace icp
