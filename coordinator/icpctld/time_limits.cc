// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/time_limits.h"

#include <algorithm>
#include <set>
#include <utility>

namespace icp {
namespace {

using std::chrono::milliseconds;
constexpr std::chrono::seconds kTick{1};
constexpr std::chrono::seconds kAgain{60};  // a time limit that was changed is noticed after so long, or at the old one
constexpr std::chrono::seconds kFresh{3};

}  // namespace

TimeLimits::TimeLimits(boost::asio::io_context& io, const Steps& steps, milliseconds margin, Look look, Act act)
    : steps_(steps), margin_(margin), look_(std::move(look)), act_(std::move(act)), timer_(io) {
  start();
}

void TimeLimits::start() {
  timer_.expires_after(kTick);
  timer_.async_wait([this](boost::system::error_code error) {
    if (error) return;
    tick(Clock::now());
    start();
  });
}

milliseconds TimeLimits::lead(milliseconds longest, milliseconds margin, std::chrono::seconds limit) {
  return std::min<milliseconds>(2 * longest + margin, limit / 2);
}

// The jobs that ask, as their agents are connected now.
void TimeLimits::gather() {
  std::set<uint32_t> asking;
  for (const auto& [key, step] : steps_.all()) {
    for (const auto& [node, hello] : step->hellos) {
      if (!hello.at_time_limit()) continue;
      Job& job = jobs_[key.job];
      asking.insert(key.job);
      job.requeue_max = hello.requeue_max();
      job.longest = std::max(job.longest, step->longest);
      for (const net::VersionNumbers& version : hello.recent())
        job.longest = std::max(job.longest, milliseconds(version.total_ns() / 1'000'000));
    }
  }
  std::erase_if(jobs_, [&](const auto& entry) { return !asking.contains(entry.first); });
}

void TimeLimits::tick(Clock::time_point now) {
  gather();
  for (auto& [id, job] : jobs_) consider(id, job, now);
  const auto next = std::min_element(jobs_.begin(), jobs_.end(), [](const auto& a, const auto& b) {
    const auto idle = [](const Job& job) { return job.looking || job.done; };
    return std::pair(idle(a.second), a.second.look_at) < std::pair(idle(b.second), b.second.look_at);
  });
  if (next == jobs_.end() || next->second.looking || next->second.done || next->second.look_at > now) return;
  next->second.looking = true;
  look_(next->first, [this, id = next->first](std::optional<SlurmJob> told) {
    const auto job = jobs_.find(id);
    if (job == jobs_.end()) return;
    const auto then = Clock::now();
    job->second.looking = false;
    job->second.look_at = then + kAgain;
    if (!told) return;
    job->second.known = std::move(told);
    job->second.known_at = then;
    consider(id, job->second, then);
  });
}

void TimeLimits::consider(uint32_t id, Job& job, Clock::time_point now) {
  if (job.done || !job.known || job.known->state != SlurmJob::kRunning || job.known->end == 0) return;
  const Clock::time_point end = Clock::from_time_t(job.known->end);
  const auto limit = std::chrono::seconds(std::max<time_t>(job.known->end - job.known->start, 0));
  if (now < end - lead(job.longest, margin_, limit)) return;
  if (now - job.known_at > kFresh) {  // it may have been given more time
    job.look_at = std::min(job.look_at, now);
    return;
  }
  job.done = true;
  act_(id, job.known->batch && job.known->requeue && job.known->restarts < job.requeue_max, [this, id] {
    // A version at the interval was under way.
    if (const auto same = jobs_.find(id); same != jobs_.end()) same->second.done = false;
  });
}

}  // namespace icp
