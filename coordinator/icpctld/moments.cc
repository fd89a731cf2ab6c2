// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/moments.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>

#include "coordinator/hang_text.h"
#include "coordinator/icp/history_text.h"
#include "coordinator/icpctld/steps_impl.h"
#include "engine/base/error.h"
#include "engine/base/times.h"

namespace icp {
namespace {

constexpr size_t kLongestComment = 500;
constexpr const char* kHung = "hung for ";
constexpr const char* kWasLost = " was lost";  // after nodes, with commas
constexpr std::chrono::seconds kLookAtNodes{5};
constexpr std::chrono::seconds kUntilSlurmKnows{3};  // how a job ended whose agents have gone

// Once, after a while.
void after(boost::asio::io_context& io, std::chrono::seconds time, std::function<void()> work) {
  const auto timer = std::make_shared<boost::asio::steady_timer>(io, time);
  timer->async_wait([timer, work = std::move(work)](boost::system::error_code error) {
    if (!error) work();
  });
}

RunKey run_of(const StepFactsRecord& step) { return {step.key.job, step.key.restarts}; }

std::optional<net::RunRecord> find_run(const Catalog& catalog, const RunKey& key) {
  for (net::RunRecord& run : catalog.runs(key.job, kMostRuns))
    if (run.restarts() == key.restarts) return std::move(run);
  return std::nullopt;
}

// To the user of a step that has an agent: one of them says it.
void say(const Step& step, const std::string& text) {
  if (step.agents.empty()) return;
  net::ToPeer message;
  message.mutable_notice()->set_text(text);
  step.agents.begin()->second(message);
}

}  // namespace

Moments::Moments(boost::asio::io_context& io, const Config& config, Steps& steps, Catalog& catalog, Requests& requests)
    : io_(io), config_(config), steps_(steps), catalog_(catalog), requests_(requests), timer_(io) {
  steps_.set_events({[this](const StepFactsRecord& step) { run_ended(step); },
                     [this](const StepFactsRecord& step, const std::string& why) { restart_failed(step, why); },
                     [this](const StepFactsRecord& step, std::chrono::milliseconds idle) { hung(step, idle); }});
  start();
}

void Moments::start() {
  timer_.expires_after(kLookAtNodes);
  timer_.async_wait([this](boost::system::error_code error) {
    if (error) return;
    look_at_nodes();
    start();
  });
}

// To the users of all steps of the job.
void Moments::tell(uint32_t job, const std::function<std::string(const Step&)>& text) const {
  for (const auto& step : steps_.running(job, std::nullopt)) say(*step, text(*step));
}

void Moments::tell_step(const StepKey& key, const std::string& text) const {
  for (const auto& step : steps_.running(key.job, key.step))
    if (step->facts.key.restarts == key.restarts) say(*step, text);
}

void Moments::at_time_limit(uint32_t job, bool requeue, std::function<void()> again) {
  before_end(job, "the time limit is near", "requeued before its time limit", requeue, std::move(again));
}

// `moment` and `why`: for the user now, and for the history.
void Moments::before_end(uint32_t job, const std::string& moment, const std::string& why, bool requeue,
                         std::function<void()> again) {
  net::Request request;
  request.set_operation(requeue ? net::OP_REQUEUE : net::OP_CREATE);
  request.set_job(job);
  request.set_wait(true);
  request.set_reason(why);
  for (const auto& step : steps_.running(job, std::nullopt))
    if (step->round || step->ends_with_version()) return again();
  if (requeue) tell(job, [&](const Step&) { return moment + ": a version is taken, and the job requeued"; });
  spdlog::info("job {}: {}: a version is taken{}", job, moment, requeue ? ", and it is requeued" : "");
  requests_.handle_own(request, [this, job, moment, requeue, again = std::move(again)](const net::Reply& reply) {
    if (reply.code() == kInProgress) return again();
    if (reply.code() == 0 && requeue) {  // its agents have gone, with its processes
      counters_.requeued++;
      return;
    }
    const std::string refused = reply.text().empty() ? slurm_text(reply.code()) : reply.text();
    tell(job, [&](const Step& step) {
      if (reply.code() != 0) return fmt::format("{}, and no version could be taken: {}", moment, refused);
      return fmt::format("{}; a version was taken: srun --restart-dir={} ... goes on from it", moment,
                         step.facts.image);
    });
  });
}

// ---- drained nodes ----------------------------------------------------------------------------

// One question to Slurm for all jobs, and none when no job asks.
void Moments::look_at_nodes() {
  asking_.clear();
  for (const auto& [key, step] : steps_.all()) {
    for (const auto& [node, hello] : step->hellos)
      if (hello.at_drain()) asking_[key.job].insert(hello.host());
  }
  std::erase_if(seen_to_, [this](uint32_t job) { return !asking_.contains(job); });
  if (asking_.empty()) return;
  requests_.look_at_nodes([this](const std::vector<SlurmNode>& nodes) { nodes_told(nodes); });
}

void Moments::nodes_told(const std::vector<SlurmNode>& nodes) {
  for (const auto& [job, hosts] : asking_) {
    const auto of_job = [&hosts = hosts](const SlurmNode& node) { return node.drained && hosts.contains(node.name); };
    const auto node = std::find_if(nodes.begin(), nodes.end(), of_job);
    if (node == nodes.end()) {
      seen_to_.erase(job);
    } else if (seen_to_.insert(job).second) {
      drained(job, *node);
    }
  }
}

void Moments::drained(uint32_t job, const SlurmNode& node) {
  const std::string reason = node.reason.empty() ? "" : fmt::format(" ({})", node.reason);
  requests_.look(job, [this, job, name = node.name, reason](std::optional<SlurmJob> known) {
    const auto again = [this, job] { seen_to_.erase(job); };
    if (!known) return again();
    if (known->state != SlurmJob::kRunning) return;
    before_end(job, fmt::format("node {} is drained{}", name, reason), fmt::format("node {} was drained", name),
               known->batch && known->requeue, again);
  });
}

// ---- ends -------------------------------------------------------------------------------------

// Whoever ended it has said why; else Slurm knows, in a moment, or, of a node that is lost, after SlurmdTimeout.
void Moments::run_ended(const StepFactsRecord& step, int looks) {
  constexpr int kQuickLooks = 4, kMostLooks = 40;
  constexpr std::chrono::seconds kLookAgain{20};
  after(io_, looks < kQuickLooks ? kUntilSlurmKnows : kLookAgain, [this, step, looks] {
    for (const auto& other : steps_.running(step.key.job, std::nullopt))
      if (other->facts.key.restarts == step.key.restarts) return;
    requests_.look(step.key.job, [this, step, looks](std::optional<SlurmJob> job) {
      if (!job) return;
      const bool known = job->restarts > step.key.restarts || (!job->end_state.empty() && !job->completing);
      if (!known && looks < kMostLooks) return run_ended(step, looks + 1);
      end_is_known(step, *job);
    });
  });
}

void Moments::end_is_known(const StepFactsRecord& step, const SlurmJob& job) {
  std::string why, lost;
  for (const std::string& host : step.lost_hosts) lost += (lost.empty() ? "" : ",") + host;
  const bool requeued = job.restarts > step.key.restarts;
  if (requeued) {
    why = job.preempted ? "preempted, and requeued by Slurm" : lost.empty() ? "requeued by Slurm" : lost + kWasLost;
  } else if (!job.end_state.empty()) {
    why = job.end_state;
  }
  if (!requeued && why == "PREEMPTED" && step.at_preempt && job.batch && job.requeue && has_version(job.id))
    return requeue_preempted(step);
  if (!why.empty()) record([&] { catalog_.run_ends_because(run_of(step), why); });
  count_lost(run_of(step));
}

bool Moments::has_version(uint32_t job) const {
  const std::vector<net::RunRecord> runs = catalog_.runs(job, kMostRuns);
  return std::any_of(runs.begin(), runs.end(), [](const auto& run) { return run.versions() > 0; });
}

// With PreemptMode=CANCEL Slurm ends a job for good.
void Moments::requeue_preempted(const StepFactsRecord& step) {
  const uint32_t id = step.key.job;
  requests_.change_job([id] { return requeue_job(id); },
                       [this, step, id](uint32_t code) {
                         const std::string why = code == 0 ? "preempted, and requeued by icpctld" : "PREEMPTED";
                         record([&] { catalog_.run_ends_because(run_of(step), why); });
                         count_lost(run_of(step));
                         if (code == 0) counters_.requeued++;
                         if (code == 0) return spdlog::info("job {}: it was preempted, and is requeued", id);
                         spdlog::error("job {}: it was preempted, and slurmctld does not requeue it: {}", id,
                                       slurm_text(code));
                       });
}

void Moments::count_lost(const RunKey& key) {
  if (const auto run = find_run(catalog_, key)) counters_.work_lost_ms += work_lost_ms(*run).value_or(0);
}

// ---- hangs ------------------------------------------------------------------------------------

void Moments::hung(const StepFactsRecord& step, std::chrono::milliseconds idle) {
  const std::string text = hang_text(idle);
  const uint64_t since = now_unix_ms() - static_cast<uint64_t>(idle.count());
  if (!is_told(run_of(step), since)) {
    counters_.hung++;
    spdlog::warn("job {}: step {}: {}", step.key.job, step.key.step, text);
    record([&] { catalog_.run_hung(run_of(step), since); });
    tell_step(step.key, text);
  }
  if (config_.hang_action == HangAction::kRequeue) requeue_hung(step, kHung + whole_seconds(idle));
}

// By the icpctld before this one.
bool Moments::is_told(const RunKey& key, uint64_t since_unix_ms) const {
  constexpr uint64_t kSame = 10'000;  // ms: clocks of nodes, messages on their way
  const auto run = find_run(catalog_, key);
  return run && run->hung_unix_ms() != 0 && since_unix_ms < run->hung_unix_ms() + kSame;
}

// What hangs in a run that was requeued for that hangs again: it would for ever.
void Moments::requeue_hung(const StepFactsRecord& step, const std::string& why) {
  const std::vector<net::RunRecord> runs = catalog_.runs(step.key.job, kMostRuns);
  if (runs.size() > 1 && runs[runs.size() - 2].why().starts_with(kHung))
    return tell_step(step.key, "it hung in its last run, too: it is not requeued");
  requests_.look(step.key.job, [this, step, why](std::optional<SlurmJob> job) {
    if (!job || job->state != SlurmJob::kRunning || job->restarts != step.key.restarts) return;
    if (!job->batch || !job->requeue) return tell_step(step.key, "the job is none that Slurm requeues: it stays");
    net::Request request;
    request.set_operation(net::OP_MOVE);
    request.set_job(step.key.job);
    request.set_wait(true);
    request.set_reason(why);
    tell_step(step.key, "a version is taken, and the job requeued, to run without " + job->nodes);
    requests_.handle_own(request, [this, step, why](const net::Reply& reply) {
      if (reply.code() == 0) return void(counters_.requeued++);
      requeue_without_version(step, why, reply.text().empty() ? slurm_text(reply.code()) : reply.text());
    });
  });
}

// What hangs in the kernel cannot be stopped, and so not be saved.
void Moments::requeue_without_version(const StepFactsRecord& step, const std::string& why, const std::string& refused) {
  const std::vector<net::RunRecord> runs = catalog_.runs(step.key.job, kMostRuns);
  if (!has_version(step.key.job))
    return tell_step(step.key, "no version could be taken, and there is none: it stays: " + refused);
  tell_step(step.key, "no version could be taken: it goes on from its last one: " + refused);
  requests_.change_job([job = step.key.job, nodes = runs.back().nodes()] { return requeue_job_without(job, nodes); },
                       [this, step, why](uint32_t code) {
                         if (code != 0)
                           return spdlog::error("job {}: it hangs, and slurmctld does not requeue it: {}", step.key.job,
                                                slurm_text(code));
                         counters_.requeued++;
                         record([&] { catalog_.run_ends_because(run_of(step), why); });
                       });
}

void Moments::restart_failed(const StepFactsRecord& step, const std::string& why) {
  counters_.restarts_failed++;
  spdlog::warn("job {}: step {} cannot be restored: {}", step.key.job, step.key.step, why);
  catalog_.run_ends_because(run_of(step), "cannot restart: " + why, true);
  if (config_.restart_attempts == 0) return;
  requests_.look(step.key.job, [this, step, why](std::optional<SlurmJob> job) {
    if (!job || !job->batch || !job->requeue || job->restarts != step.key.restarts) return;
    hold_or_requeue(step, why);
  });
}

void Moments::hold_or_requeue(const StepFactsRecord& step, const std::string& why) {
  const uint32_t job = step.key.job;
  const std::vector<net::RunRecord> runs = catalog_.runs(job, kMostRuns);
  uint32_t failed = 0;
  for (auto run = runs.rbegin(); run != runs.rend() && run->restart_failed(); ++run) failed++;
  const std::string nodes = config_.exclude_failed_nodes && !runs.empty() ? runs.back().nodes() : "";
  const bool hold = failed >= config_.restart_attempts;
  const std::string done = hold            ? "held: scontrol release lets it try again"
                           : nodes.empty() ? "requeued"
                                           : "requeued, to run without " + nodes;
  tell(job, [&](const Step&) { return "the job is " + done; });
  requests_.change_job(
      [job, hold, nodes, comment = "slurm-icp: cannot restart: " + why.substr(0, kLongestComment)] {
        if (hold) return requeue_job_held(job, comment);
        return nodes.empty() ? requeue_job(job) : requeue_job_without(job, nodes);
      },
      [this, job, done, hold](uint32_t code) {
        if (code == 0) (hold ? counters_.held : counters_.requeued)++;
        if (code == 0) return spdlog::warn("job {}: {}", job, done);
        spdlog::error("job {}: it should be {}, and slurmctld refuses: {}", job, done, slurm_text(code));
      });
}

}  // namespace icp
