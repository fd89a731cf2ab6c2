// SPDX-License-Identifier: GPL-2.0-or-later
// When versions are taken, and their rounds.
#include <signal.h>

#include <algorithm>
#include <set>

#include "coordinator/icpctld/slurm_jobs.h"
#include "coordinator/icpctld/steps_impl.h"

namespace icp {
namespace {

using boost::system::error_code;
using std::chrono::milliseconds;

constexpr milliseconds kRetry{250};
constexpr int kTransientTries = 8;

}  // namespace

// ---- when -------------------------------------------------------------------------------------

void Steps::plan_next(const std::shared_ptr<Step>& step) {
  const auto interval = milliseconds(step->facts.interval_ms);
  const auto now = Step::Clock::now();
  // From when the last one was due; intervals that it overran are left out.
  while (step->due_ <= now) step->due_ += interval;
  const int64_t most = interval.count() * config_.jitter / 100;
  const auto shift = milliseconds(most == 0 ? 0 : std::uniform_int_distribution<int64_t>(-most, most)(random_));
  const auto when = std::max(step->due_ + shift, now);
  step->next_due = std::chrono::system_clock::now() + std::chrono::duration_cast<milliseconds>(when - now);
  step->due_timer_.expires_at(when);
  step->due_timer_.async_wait([this, step](error_code error) {
    if (error) return;
    step->due_ += std::chrono::milliseconds(step->facts.interval_ms);  // it may have come before its time
    due(step);
  });
}

// At its time, or soon after a version that failed.
void Steps::due(const std::shared_ptr<Step>& step) {
  if (step->agents.empty()) return;  // it ended when this was on its way already
  const bool busy = step->round || step->request_ || !step->held.empty();
  if (!busy && step->complete() && !is_disabled(*step)) {
    step->request_.emplace();
    begin_or_wait(step);
  }
  plan_next(step);
}

uint32_t Steps::create(const std::shared_ptr<Step>& step, VersionRequest wanted) {
  if (step->round || step->request_ || step->ends_with_version()) return kInProgress;
  if (is_disabled(*step)) return kDisabled;
  if (!step->complete()) return kCheckpointFailed;
  step->request_ = std::move(wanted);
  begin_or_wait(step);
  return kSlurmSuccess;
}

void Steps::begin_or_wait(const std::shared_ptr<Step>& step) {
  step->latest_ = step->request_->max_wait.count() == 0 ? Step::Clock::time_point::max()
                                                        : Step::Clock::now() + step->request_->max_wait;
  if (config_.max_writers != 0 && writers_ >= config_.max_writers) {
    step->waiting_ = true;
    waiting_.push_back(step);
    return;
  }
  begin(step);
}

void Steps::free_place() {
  writers_--;
  next_writer();
}

void Steps::next_writer() {
  while (!waiting_.empty() && (config_.max_writers == 0 || writers_ < config_.max_writers)) {
    const std::shared_ptr<Step> step = waiting_.front().lock();
    waiting_.pop_front();
    if (!step || !step->request_ || !step->waiting_) continue;
    step->waiting_ = false;
    if (step->complete()) {
      begin(step);
      continue;
    }
    // An agent left meanwhile: a version of the others would be none.
    const auto told = step->request_->finished;
    step->request_.reset();
    if (told) told(kCheckpointFailed, "not all agents of the step are connected");
  }
}

// Slurm has sent SIGTERM, and SIGKILL comes soon; or another signal before which there is to be a version. All agents
// that hear of it ask, one after the other.
void Steps::version_at_signal(const std::shared_ptr<Step>& step, uint32_t signal, uint64_t after_round) {
  if (step->round) {
    const bool another = step->request_->signal != signal || step->round->id() == after_round;
    if (another && step->near_ != SIGTERM) step->near_ = signal;
    return;
  }
  if (step->ends_with_version()) return;
  if (is_disabled(*step) || !step->complete()) {
    net::ToPeer message;
    message.mutable_abort()->set_reason(is_disabled(*step) ? "checkpoints are disabled"
                                                           : "agents of the step are gone");
    for (const auto& [node, send] : step->agents) send(message);
    return;
  }
  if (!step->request_) step->request_.emplace();
  step->request_->signal = signal;  // one that waited for its turn waits no longer
  step->waiting_ = false;
  step->latest_ = Step::Clock::time_point::max();
  begin(step);
}

// ---- a round ----------------------------------------------------------------------------------

void Steps::begin(const std::shared_ptr<Step>& step) {
  writers_++;
  step->killing_ = false;
  step->watched_ = net::NONE;
  step->round_began = std::chrono::system_clock::now();
  std::set<std::string> nodes;
  for (const auto& [node, send] : step->agents) nodes.insert(node);
  const RoundLimits limits{config_.prepare_timeout, config_.stop_timeout, config_.write_timeout};
  step->round = std::make_unique<Round>(next_round_++, ++step->highest_version, nodes, step->request_->kill, limits,
                                        sender(step));
  step->round->begin(step->request_->image_dir, step->request_->signal);
  advanced(step);
}

void Steps::watch_phase(const std::shared_ptr<Step>& step) {
  // Whatever else is said in a phase, it does not become longer by that.
  if (step->watched_ == step->round->phase()) return;
  step->watched_ = step->round->phase();
  const auto until = std::min(Step::Clock::now() + step->round->limit(), step->latest_);
  step->phase_timer_.expires_at(until);
  step->phase_timer_.async_wait([this, step, until](error_code error) {
    // The time-out of the phase before may have been on its way when the next one began.
    if (error || !step->round || step->phase_timer_.expiry() != until) return;
    step->round->time_out();
    advanced(step);
  });
}

// After anything that may have moved the round.
void Steps::advanced(const std::shared_ptr<Step>& step) {
  if (step->round->over()) return finished(step);
  if (!step->round->may_kill()) return watch_phase(step);
  if (step->killing_) return;
  step->killing_ = true;
  // Its writing is over: other steps of the job, for which the kill waits, may need the place.
  free_place();
  const auto go_on = [this, weak = std::weak_ptr(step), id = step->round->id()](const std::string& why) {
    const auto same = weak.lock();
    if (!same || !same->round || same->round->id() != id) return;
    if (why.empty()) {
      same->round->finish_kill();
    } else {
      same->round->give_up(why);
    }
    advanced(same);
  };
  if (step->request_->before_kill) return step->request_->before_kill(go_on);
  go_on({});
}

void Steps::finished(const std::shared_ptr<Step>& step) {
  step->phase_timer_.cancel();
  const std::unique_ptr<Round> round = std::move(step->round);
  const VersionRequest wanted = std::move(*step->request_);
  step->request_.reset();
  if (!step->killing_) writers_--;
  const RoundResult& result = round->result();
  // Another image may have higher numbers than the step's own.
  const bool taken = round->highest_version() >= round->version() && !wanted.image_dir.empty();
  if (!result.committed && taken && !wanted.renumbered && step->complete()) {
    step->request_ = wanted;
    step->request_->renumbered = true;
    return begin(step);
  }
  uint32_t code = 0;
  std::string text = result.error;
  if (result.committed) {
    counters_.committed++;
    counters_.bytes += result.numbers.bytes();
    counters_.stop_ns += result.numbers.stop_ns();
    counters_.total_ns += result.numbers.total_ns();
    step->longest = std::max(step->longest, milliseconds(result.numbers.total_ns() / 1'000'000));
    record([&] { catalog_.version(step->facts.key, result.numbers, step->facts.nodes); });
    spdlog::info("step {}: version {}{}: {} processes, {} bytes, stopped {:.1f} ms, {:.3f} s in all", name_of(*step),
                 round->version(), result.numbers.full() ? " (full)" : "", result.numbers.processes(),
                 result.numbers.bytes(), static_cast<double>(result.numbers.stop_ns()) / 1e6,
                 static_cast<double>(result.numbers.total_ns()) / 1e9);
  }
  if (result.expected && !wanted.finished) {
    spdlog::debug("step {}: no version: {}", name_of(*step), text);
    text.clear();
  }
  if (!text.empty()) {
    counters_.failed++;
    code = result.timed_out ? kTimedOut : kCheckpointFailed;
    if (!result.hint.empty()) text += "; " + result.hint;
    if (text.size() > kLongestErrorText) text.resize(kLongestErrorText);
    spdlog::warn("step {}: {}: {}", name_of(*step), result.committed ? "after the version was committed" : "no version",
                 text);
  }
  record([&] { catalog_.result(step->facts.key, code, text); });
  step->facts.last_code = code;
  step->facts.last_error = text;
  // Something of the moment, as a process that ended just then: soon again, a few times.
  const bool again = !result.committed && result.transient && !result.timed_out && step->complete() &&
                     step->facts.interval_ms > 0 && !wanted.finished && ++step->transient_failures_ <= kTransientTries;
  if (!again) step->transient_failures_ = 0;
  if (result.committed && wanted.kill && text.empty()) {
    for (const auto& [node, hello] : step->hellos) step->held.insert(node);
    record_held(*step);
  }
  if (wanted.finished) wanted.finished(code, text);
  next_writer();
  const uint32_t near = std::exchange(step->near_, 0);
  if (near != 0 && !step->agents.empty() && !step->request_) return version_at_signal(step, near, 0);
  if (again && !step->round && !step->request_) {
    step->due_timer_.expires_after(kRetry);
    step->due_timer_.async_wait([this, step](error_code error) {
      if (!error) due(step);
    });
  }
}

}  // namespace icp
