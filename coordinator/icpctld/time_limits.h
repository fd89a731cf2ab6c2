// SPDX-License-Identifier: GPL-2.0-or-later
// Jobs that want a version before their time limit (--checkpoint-on=timelimit): when that is, and that it is seen to.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>

#include "coordinator/icpctld/slurm_jobs.h"
#include "coordinator/icpctld/steps.h"
#include "coordinator/protocol/asio.h"

namespace icp {

// One thread.
class TimeLimits {
 public:
  using Clock = std::chrono::system_clock;
  // Asks Slurm about a job, in another thread; `told` is called in this one, with nothing when Slurm could not be
  // asked.
  using Look = std::function<void(uint32_t job, std::function<void(std::optional<SlurmJob>)> told)>;
  // The job's last moments have come. `requeue`: it has a next run. `again`: to be called when it could not be done
  // yet.
  using Act = std::function<void(uint32_t job, bool requeue, std::function<void()> again)>;

  TimeLimits(boost::asio::io_context& io, const Steps& steps, std::chrono::milliseconds margin, Look look, Act act);

  // What is to be done at `now`: at most one question to Slurm. Called each second by itself.
  void tick(Clock::time_point now);
  // How long before its end a job must be seen to: twice what its longest recent version took, and the margin; at most
  // half of its time limit.
  static std::chrono::milliseconds lead(std::chrono::milliseconds longest, std::chrono::milliseconds margin,
                                        std::chrono::seconds limit);

 private:
  struct Job {
    Clock::time_point look_at;  // when Slurm is to be asked (again): limits are changed
    std::optional<SlurmJob> known;
    Clock::time_point known_at;
    std::chrono::milliseconds longest{0};  // of the versions its agents remember
    uint32_t requeue_max = 0;
    bool looking = false, done = false;
  };
  void start();
  void gather();
  void consider(uint32_t id, Job& job, Clock::time_point now);

  const Steps& steps_;
  const std::chrono::milliseconds margin_;
  const Look look_;
  const Act act_;
  boost::asio::steady_timer timer_;
  std::map<uint32_t, Job> jobs_;
};

}  // namespace icp
