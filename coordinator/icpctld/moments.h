// SPDX-License-Identifier: GPL-2.0-or-later
// What icpctld does with a job unasked: a version and a requeue before its time limit or when its node is drained; held
// when none of its versions can be restored; and the word in its history of why a run ended.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "coordinator/config.h"
#include "coordinator/icpctld/catalog.h"
#include "coordinator/icpctld/requests.h"
#include "coordinator/icpctld/steps.h"
#include "coordinator/protocol/asio.h"

namespace icp {

// One thread.
class Moments {
 public:
  Moments(boost::asio::io_context& io, const Config& config, Steps& steps, Catalog& catalog, Requests& requests);

  // The job's time limit is near: a version, after which it is requeued if it may be; the user is told. `again`, when a
  // version is under way.
  void at_time_limit(uint32_t job, bool requeue, std::function<void()> again);
  struct Counters {
    uint64_t requeued = 0, restarts_failed = 0, held = 0, work_lost_ms = 0, hung = 0;
  };
  const Counters& counters() const { return counters_; }

 private:
  void before_end(uint32_t job, const std::string& moment, const std::string& why, bool requeue,
                  std::function<void()> again);
  void look_at_nodes();
  void nodes_told(const std::vector<SlurmNode>& nodes);
  void drained(uint32_t job, const SlurmNode& node);
  void run_ended(const StepFactsRecord& step, int looks = 0);
  void end_is_known(const StepFactsRecord& step, const SlurmJob& job);
  bool has_version(uint32_t job) const;
  void requeue_preempted(const StepFactsRecord& step);
  void hung(const StepFactsRecord& step, std::chrono::milliseconds idle);
  bool is_told(const RunKey& key, uint64_t since_unix_ms) const;
  void requeue_hung(const StepFactsRecord& step, const std::string& why);
  void requeue_without_version(const StepFactsRecord& step, const std::string& why, const std::string& refused);
  void count_lost(const RunKey& run);
  void restart_failed(const StepFactsRecord& step, const std::string& why);
  void hold_or_requeue(const StepFactsRecord& step, const std::string& why);
  void tell(uint32_t job, const std::function<std::string(const Step&)>& text) const;
  void tell_step(const StepKey& step, const std::string& text) const;
  void start();

  boost::asio::io_context& io_;
  const Config& config_;
  Steps& steps_;
  Catalog& catalog_;
  Requests& requests_;
  boost::asio::steady_timer timer_;
  std::map<uint32_t, std::set<std::string>> asking_;  // jobs, and their nodes
  std::set<uint32_t> seen_to_;                        // jobs on drained nodes
  Counters counters_;
};

}  // namespace icp
