// SPDX-License-Identifier: GPL-2.0-or-later
// One version of one step, taken by all its agents together in two phases: everybody has everything in memory before
// anybody's processes run on, and everybody's files are flushed before anybody's are renamed into place.
//
// No input or output in here: what has to be sent is handed to `send`, and time passes by time_out(). One thread.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "coordinator/icpctld/connection_ends.h"
#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

struct RoundLimits {
  std::chrono::milliseconds prepare, stop, write;
};

struct RoundResult {
  bool committed = false;
  std::string error, hint;  // when not
  bool transient = false;   // the failure is one of the moment
  bool timed_out = false;
  bool expected = false;        // nothing was wrong, there was nothing to save
  net::VersionNumbers numbers;  // sums over the nodes; stop and total time are the longest
};

class Round {
 public:
  using Send = std::function<void(const std::string& node, const net::ToPeer&)>;

  Round(uint64_t id, uint32_t version, std::set<std::string> nodes, bool kill, RoundLimits limits, Send send);

  // Tells all agents to begin; `image_dir` as in BeginRound.
  void begin(const std::string& image_dir = {}, uint32_t signal = 0);
  // What an agent said. Messages of other rounds and of other nodes are left alone.
  void done(const std::string& node, const net::PhaseDone& message);
  // An agent asks which of its connections stay inside the step.
  void survey(const std::string& node, const net::Survey& message);
  // The agent is gone.
  void lost(const std::string& node, const std::string& why);
  // The time limit of the phase has passed.
  void time_out();
  // Gives the version up; a committed one stays.
  void give_up(const std::string& why);
  // A round that kills: every node has committed, and it waits for finish_kill() or give_up().
  bool may_kill() const { return phase_ == net::COMMIT && committed_everywhere() && kill_ && !over_; }
  void finish_kill();

  bool over() const { return over_; }
  const RoundResult& result() const { return result_; }  // once over()
  net::Phase phase() const { return phase_; }
  // For the phase under way.
  std::chrono::milliseconds limit() const;
  uint64_t id() const { return id_; }
  uint32_t version() const { return version_; }
  uint32_t highest_version() const { return highest_; }  // that agents spoke of

 private:
  void go(net::Phase phase);
  void fail(const std::string& why, bool transient, bool timed_out = false);
  bool all_done() const { return done_.size() == nodes_.size(); }
  bool committed_everywhere() const { return committed_ == nodes_.size(); }
  void add(const net::VersionNumbers& numbers);

  const uint64_t id_;
  const uint32_t version_;
  const std::set<std::string> nodes_;
  const bool kill_, alone_;
  const RoundLimits limits_;
  const Send send_;
  net::Phase phase_ = net::NONE;
  std::set<std::string> done_;  // with the phase
  ConnectionEnds surveyed_, stopped_;
  std::set<std::string> asking_;  // wait for the answer to their survey
  size_t committed_ = 0;
  uint32_t highest_ = 0;
  bool over_ = false;
  RoundResult result_;
};

}  // namespace icp
