// SPDX-License-Identifier: GPL-2.0-or-later
// What StepAgent does when Slurm sends a signal before which there is to be a version, and until it ends the step.
#include <signal.h>
#include <spdlog/spdlog.h>
#include <string.h>

#include <algorithm>
#include <utility>

#include "coordinator/checkpoint_moments.h"
#include "coordinator/icpstepd/step_agent.h"
#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/times.h"

namespace icp {

using protocol::Packet;
namespace {

constexpr std::chrono::minutes kHold{5};

}  // namespace

// ---- guards ------------------------------------------------------------------------------------

// A version of several nodes before a signal needs icpctld. Of what an MPI launcher has started the script's agent
// knows.
bool StepAgent::wants_guards() const {
  const bool can = !several_capsules() || (facts_.launched == 0 && !launched_.any() && !config_.coordinators.empty());
  return (is_moment(SIGTERM) || has_moment(moments_, kAtSignal)) && can && problem_.empty() &&
         !(facts_.step == protocol::kBatchStep && config_.batch == BatchPolicy::kNever);
}

bool StepAgent::is_moment(int signal) const {
  if (signal == SIGTERM) return has_moment(moments_, kPreempt) || has_moment(moments_, kCancel);
  return has_moment(moments_, kAtSignal) && is_asked_for(signal);
}

bool StepAgent::is_guard(pid_t pid) const {
  return std::any_of(tasks_.begin(), tasks_.end(),
                     [pid](const auto& entry) { return entry.second.child != 0 && entry.second.pid == pid; });
}

void StepAgent::on_guard(Task& task, const Packet& packet) {
  const auto child = packet.number("child");
  if (packet.type == protocol::kGuards && child && *child > 1 && *child <= INT32_MAX && task.child == 0) {
    try {
      if (ProcStat::read(static_cast<pid_t>(*child)).ppid == task.pid) task.child = static_cast<pid_t>(*child);
    } catch (const Error&) {
      // It has ended, and so will the task.
    }
    if (task.state == Task::kStarting) task.state = Task::kRunning;
    return begin_versions_when_all_run();
  }
  const int64_t signal = packet.number("signal").value_or(0);
  if (packet.type != protocol::kSignal || signal < 1 || signal >= NSIG) return;
  on_signal(task, static_cast<int>(signal));
}

// Of several nodes icpctld lets all take the version together, and it is answered then.
void StepAgent::on_signal(Task& task, int signal) {
  if (!is_moment(signal)) return hand_on(task, signal);
  if (several_capsules() && !is_answered(signal) && ask_for_version_before(signal, 0)) {
    signal_waits_[signal].insert(task.rank);
    return;
  }
  version_before(signal);
  hand_on(task, signal);  // which has ended meanwhile, or was held long enough
}

// All tasks get it at about the same time; later it is another one.
bool StepAgent::is_answered(int signal) const {
  constexpr std::chrono::seconds kSame{5};
  if (signal == SIGTERM) return terminated_;
  const auto answer = answered_.find(signal);
  return answer != answered_.end() && std::chrono::steady_clock::now() - answer->second < kSame;
}

bool StepAgent::ask_for_version_before(int signal, uint64_t after_round) {
  constexpr std::chrono::seconds kUntilItBegins{10};
  const bool asked = signal_waits_.contains(signal) && after_round == 0;
  if (asked || !versions_.begun() || facts_.launched != 0 || launched_.any() || !link_ || !link_->scheduled())
    return asked;
  net::ToCoordinator message;
  message.mutable_near()->set_after_round(after_round);
  if (signal != SIGTERM) message.mutable_near()->set_signal(static_cast<uint32_t>(signal));
  link_->say(message);
  last_timer_.expires_after(kUntilItBegins);
  last_timer_.async_wait([this](boost::system::error_code error) {
    if (!error) let_all_through();
  });
  return true;
}

// `image` is empty when it failed: tried again, when the failure may have been one of the moment.
void StepAgent::version_before_is_over(const std::string& image, const net::BeginRound& begin) {
  constexpr int kTries = 3;
  const int signal = begin.last() ? SIGTERM : static_cast<int>(begin.signal());
  if (!image.empty()) {
    if (signal != SIGTERM) {
      taken_for_signal(signal, image);
    } else if (!terminated_) {
      taken_for_end(image);
    }
  } else {
    const bool undo = signal == SIGTERM && std::exchange(terminated_, false);
    if (undo) unmark_vacated(image_, identity_of(facts_));  // other nodes did not commit
    if (signal_waits_.contains(signal) && ++signal_tries_ < kTries && ask_for_version_before(signal, begin.round()))
      return;
  }
  let_through(signal);
}

void StepAgent::let_through(int signal) {
  signal_tries_ = 0;
  const auto waiting = signal_waits_.extract(signal);
  if (signal_waits_.empty()) last_timer_.cancel();
  if (waiting.empty()) return;
  for (const int rank : waiting.mapped()) {
    Task* const task = find(rank);
    if (task != nullptr && task->socket) hand_on(*task, signal);
  }
}

void StepAgent::let_all_through() {
  while (!signal_waits_.empty()) let_through(signal_waits_.begin()->first);
}

void StepAgent::say_taken(int signal) {
  if (several_capsules() && !tasks_.contains(0)) return;
  const char* const name = ::sigabbrev_np(signal);
  notices_.say(fmt::format("slurm-icp: step {}: version {} was taken when {} came", step(),
                           versions_.recent().back().version(),
                           name != nullptr ? fmt::format("SIG{}", name) : fmt::format("signal {}", signal)));
}

// The program runs on and does with it what it likes. Should that be its end, a requeued job goes on from the version.
void StepAgent::taken_for_signal(int signal, const std::string& image) {
  answered_[signal] = std::chrono::steady_clock::now();
  mark_vacated(image_, identity_of(facts_), image);
  say_taken(signal);
  if (link_) link_->set_hello(hello());
}

void StepAgent::taken_for_end(const std::string& image) {
  terminated_ = true;
  mark_vacated(image_, identity_of(facts_), image);
  say_taken(SIGTERM);
  if (link_) link_->set_hello(hello());
}

// A preempted job is requeued when its GraceTime is over, if it still runs then: one whose program ended at SIGTERM
// would be taken for done, and what it did meanwhile would be done twice. Who sent SIGTERM for something else and sends
// no SIGKILL waits that long.
std::optional<Hold> StepAgent::hold_for_end(std::function<bool()> stays) {
  if (!has_moment(moments_, kPreempt)) return std::nullopt;
  Hold hold;
  hold.begun = [this] {
    held_ = true;
    taken_for_end(versions_.taken_in());
    tell_version();
    tell_held();
  };
  const auto until = std::make_shared<std::chrono::steady_clock::time_point>();
  hold.goes_on = [this, until, stays = std::move(stays)] {
    const auto now = std::chrono::steady_clock::now();
    if (until->time_since_epoch().count() == 0) *until = now + kHold;
    // Tasks that have ended now were killed, and the others are about to be.
    return hear_slurmstepd() && now < *until && (!stays || stays());
  };
  return hold;
}

void StepAgent::tell_held() {
  if (!link_) return;
  net::ToCoordinator message;
  message.mutable_held()->set_held(held_);
  link_->say(message);
}

// Of one node; those of several are told in their rounds.
void StepAgent::tell_version() {
  if (!link_ || several_capsules()) return;
  net::ToCoordinator message;
  *message.mutable_version()->mutable_numbers() = versions_.recent().back();
  link_->say(message);
}

// When they were held too long.
void StepAgent::hold_is_over() {
  held_ = false;
  if (link_) link_->set_hello(hello());
  tell_held();
}

void StepAgent::hand_on(const Task& task, int signal) {
  if (!task.socket) return;  // it has ended, as slurmstepd has said meanwhile
  if (task.child != 0) {
    protocol::send_packet(task.socket->native_handle(), Packet(protocol::kSignal).set_number("signal", signal));
  } else if (capsule_) {
    pass_signal(task, signal);
  }
}

// Once for all tasks: each gets the signal then.
void StepAgent::version_before(int signal) {
  if (is_answered(signal) || !versions_.begun() || versions_.left_to_steps() || several_capsules()) return;
  const auto before = highest_versions(image_, facts_).second;
  constexpr int kTries = 3;
  std::optional<Hold> hold = signal == SIGTERM ? hold_for_end({}) : std::nullopt;
  for (int tries = 0; tries < kTries && take_version(hold ? &*hold : nullptr); tries++) {
  }
  if (hold && hold->over) hold_is_over();
  if (hold || highest_versions(image_, facts_).second == before) return;
  signal == SIGTERM ? taken_for_end(image_) : taken_for_signal(signal, image_);
  tell_version();
}

// For the line of a restart: how much was lost of what the step did after its last version.
void StepAgent::mark_end(bool all_well) {
  if (!versions_.begun() || image_.empty() || facts_.launched != 0) return;
  if (all_well || held_ || vacated_) return unmark_end(image_, identity_of(facts_));
  icp::mark_end(image_, identity_of(facts_), now_unix_ms());
}

}  // namespace icp
