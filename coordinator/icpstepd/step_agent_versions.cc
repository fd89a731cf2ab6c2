// SPDX-License-Identifier: GPL-2.0-or-later
// What StepAgent does while its tasks run: when versions are taken, and who has a say in it.
#include <signal.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "coordinator/checkpoint_moments.h"
#include "coordinator/hang_text.h"
#include "coordinator/icpstepd/batch_script.h"
#include "coordinator/icpstepd/step_agent.h"
#include "engine/base/error.h"
#include "engine/base/process_signal.h"
#include "engine/base/procfs.h"

namespace icp {

namespace {

constexpr auto kRetry = std::chrono::milliseconds(70);  // no divisor of what programs like to sleep

}  // namespace

// ---- versions ----------------------------------------------------------------------------------

std::vector<TaskStreams> StepAgent::task_streams() const {
  std::vector<TaskStreams> all;
  for (const auto& [rank, task] : tasks_) all.push_back({rank, task.streams, task.pmi, task.cpus});
  return all;
}

void StepAgent::begin_versions_when_all_run() {
  const bool wanted = (interval_.count() > 0 || !moments_.empty() || !config_.coordinators.empty()) && plan_ &&
                      plan_->kind == StartPlan::kFresh && problem_.empty() &&
                      !(facts_.step == protocol::kBatchStep && config_.batch == BatchPolicy::kNever);
  if (!wanted || versions_.begun() || tasks_.size() != facts_.local_tasks) return;
  std::vector<TaskRoot> roots;
  for (const auto& [rank, task] : tasks_) {
    if (task.state == Task::kForked || task.state == Task::kStarting) return;
    if (task.state == Task::kRunning) roots.push_back({task.root(), rank});
  }
  if (roots.empty()) return;
  try {
    // What is there of an earlier job is moved aside by the first task's node alone.
    const bool first_here = facts_.restarts == 0 && facts_.launched == 0 && tasks_.begin()->first == 0;
    prepare_image_path(image_, identity_of(facts_), !first_here);
    unmark_completed(image_, identity_of(facts_));
    unmark_vacated(image_, identity_of(facts_));
    unmark_end(image_, identity_of(facts_));
    SessionConfig config = versions_.session_config(image_, task_streams());
    pmix_.add_stream(config.outer);
    config.more_processes = [this] { return orphans(); };
    find_sockets(config);
    config.ended_tasks = [this] { return ended_tasks(); };
    start_versions(Session(std::move(config), roots));
  } catch (const Error& error) {
    spdlog::error("{}", error.what());
    problem_ = error.what();
    if (!asked()) return;
    notices_.complain(
        fmt::format("slurm-icp: step {}: no checkpoints: {} (the job runs on)", step(), with_hint(error)));
  }
}

// Processes of the step that may have lost their parents: its cgroup knows them.
std::vector<pid_t> StepAgent::orphans() const {
  for (const auto& [rank, task] : tasks_) {
    try {
      if (task.state != Task::kRunning) continue;
      std::vector<pid_t> pids = step_processes(task.pid);
      std::erase_if(pids, [this](pid_t pid) { return is_guard(pid) || launched_.is_outside(pid); });
      return pids;
    } catch (const Error&) {
      continue;  // it has ended
    }
  }
  return {};
}

// By rank, wait(2) statuses.
std::map<int, int> StepAgent::ended_tasks() {
  hear_slurmstepd();
  std::map<int, int> ended;
  for (const auto& [rank, task] : tasks_) {
    if (!task.status) continue;
    ended[rank] = *task.status;
    // The others wait for it, or are about to be ended.
    if (*task.status != 0 && (pmix_.active() || task.pmi.mode != 0))
      throw_error(ErrorKind::kRefused, "task {} of an MPI program has failed", rank);
  }
  return ended;
}

void StepAgent::start_versions(Session session) {
  versions_.begin(std::move(session), image_);
  for (const auto& [moment, when] :
       {std::pair(kAtTimeLimit, "before the time limit"), std::pair(kAtDrain, "when a node is drained")}) {
    if (facts_.checkpoint_on.empty() || !config_.coordinators.empty() || !has_moment(moments_, moment)) continue;
    notices_.complain(
        fmt::format("slurm-icp: step {}: no checkpoint {}: that needs a coordinator (icpctld)", step(), when));
  }
  if (!config_.coordinators.empty() && !link_) start_link();
  if (interval_.count() > 0) start_timer();
  active_at_ = std::chrono::steady_clock::now();
  if (config_.hang_after.count() > 0) on_hang_timer();
}

// ---- the coordinator ----------------------------------------------------------------------------

net::AgentHello StepAgent::hello() const {
  net::AgentHello hello;
  hello.set_job(facts_.job);
  hello.set_step(protocol::step_of_versions(facts_));
  hello.set_launched(facts_.launched);
  hello.set_restarts(facts_.restarts);
  hello.set_uid(facts_.uid);
  hello.set_node(facts_.capsule);
  hello.set_host(facts_.node);
  hello.set_nodes(facts_.capsules);
  hello.set_tasks(facts_.local_tasks);
  hello.set_interval_ms(static_cast<uint64_t>(interval_.count()));
  hello.set_image(image_);
  hello.set_at_time_limit(has_moment(moments_, kAtTimeLimit));
  hello.set_at_drain(has_moment(moments_, kAtDrain));
  hello.set_at_preempt(has_moment(moments_, kPreempt));
  hello.set_held(held_);
  hello.set_requeue_max(facts_.requeue_max == protocol::StepFacts::kNoRequeueMax ? config_.requeue_max
                                                                                 : facts_.requeue_max);
  hello.set_restoring(plan_ && plan_->kind == StartPlan::kRestart && !versions_.begun() && several_capsules());
  if (hello.restoring()) hello.set_capsules_to_restore(capsules_to_restore_);
  const auto [highest, committed] = highest_versions(image_, facts_);
  hello.set_highest_version(highest);
  hello.set_committed(committed);
  for (const net::VersionNumbers& numbers : versions_.recent()) *hello.add_recent() = numbers;
  return hello;
}

void StepAgent::start_link() {
  CoordinatorLink::Events events;
  events.begin = [this](const net::BeginRound& begin) {
    std::optional<Hold> hold;
    if (begin.last()) hold = hold_for_end([this, round = begin.round()] { return !link_->given_up(round); });
    const std::string image = take_version(begin, hold ? &*hold : nullptr);
    if (hold && hold->over) hold_is_over();
    vacated_ = vacated_ || (!image.empty() && begin.kill());
    if (!image.empty() && begin.kill()) mark_vacated(image_, identity_of(facts_), image);
    if (begin.last() || begin.signal() != 0) version_before_is_over(image, begin);
    link_->set_hello(hello());
  };
  events.changed = [this](const std::string& why) { on_link_changed(why); };
  events.missed = [this](const std::string& why) {
    let_all_through();
    if (asked())
      notices_.complain(fmt::format("slurm-icp: step {}: no checkpoints: {} (the job runs on)", step(), why));
  };
  events.notice = [this](const std::string& text) {
    notices_.say(fmt::format("slurm-icp: step {}: {}", step(), text));
  };
  link_since_ = std::chrono::steady_clock::now();
  try {
    link_ = std::make_unique<CoordinatorLink>(config_, hello(), io_, std::move(events));
    if (config_.ipc == IpcPolicy::kPrivate)
      ipc_report_.emplace(
          io_, [this] { return some_process(); }, [this](const net::ToCoordinator& message) { link_->say(message); });
  } catch (const Error& error) {
    on_link_changed(error.what());
  }
}

// What is outside, but known: the launcher's connection to its stand-ins.
void StepAgent::find_sockets(SessionConfig& config) {
  if (!may_launch()) return;
  config.more_outer = [this] { return launched_.streams(); };
  config.describe = [this](pb::Capsule& capsule) { launched_.describe(capsule); };
}

// One that runs now; 0 if none does. A restored step's are the capsule's: the proxies are in another namespace.
pid_t StepAgent::some_process() const {
  if (capsule_) return capsule_->init_pid();
  for (const auto& [rank, task] : tasks_)
    if (task.state == Task::kRunning && task.pid > 0) return task.root();
  return 0;
}

void StepAgent::on_link_changed(const std::string& why) {
  if (why.empty()) {
    spdlog::info("connected to the coordinator");
    absence_told_ = false;
    if (ipc_report_) ipc_report_->begin_anew();
    return;
  }
  let_all_through();
  spdlog::warn("no coordinator: {}", why);
  tell_absence(why);
}

// Once each time it is away, by the node of the step's first task: a thousand nodes would say the same.
void StepAgent::tell_absence(const std::string& why) {
  if (!asked() || absence_told_) return;  // who asked for nothing misses nothing
  absence_told_ = true;
  if (tasks_.empty() || tasks_.begin()->first != 0) return;
  notices_.complain(fmt::format(
      "slurm-icp: step {}: the coordinator cannot be reached ({}): {}", step(), why,
      several_capsules() ? "no checkpoints until it can (the job runs on)" : "checkpoints are taken without it"));
}

// ---- what the processes do ----------------------------------------------------------------------

std::vector<ProcessRef> StepAgent::all_processes() const {
  std::vector<pid_t> pids = versions_.roots();
  for (const pid_t pid : capsule_ ? read_children(capsule_->init_pid()) : orphans()) pids.push_back(pid);
  return find_processes(pids);
}

// A step that is suspended does not hang, nor does a script that waits for its steps.
bool StepAgent::is_active() {
  return activity_.look(all_processes()) || versions_.left_to_steps() || launched_.any() ||
         suspension_of(versions_.roots()) != Suspension::kNone;
}

void StepAgent::on_hang_timer() {
  using std::chrono::milliseconds;
  constexpr int kLooks = 8;
  constexpr milliseconds kShortest{250}, kLongest{60'000};
  const auto now = std::chrono::steady_clock::now();
  try {
    if (is_active()) {
      active_at_ = now;
      if (std::exchange(idle_told_, false)) tell_idle(milliseconds(0));
    } else if (now - active_at_ >= config_.hang_after) {
      tell_idle(std::chrono::duration_cast<milliseconds>(now - active_at_));
    }
  } catch (const Error& error) {
    spdlog::debug("not known what the processes do: {}", error.what());  // one has just ended
  }
  hang_timer_.expires_after(std::clamp(config_.hang_after / kLooks, kShortest, kLongest));
  hang_timer_.async_wait([this](boost::system::error_code error) {
    if (!error && versions_.begun()) on_hang_timer();
  });
}

// icpctld decides what is to be done; without one this node's user hears of it here.
void StepAgent::tell_idle(std::chrono::milliseconds idle) {
  if (link_) {
    net::ToCoordinator message;
    message.mutable_idle()->set_idle_ms(static_cast<uint64_t>(idle.count()));
    link_->say(message);
  } else if (!idle_told_ && idle.count() > 0) {
    notices_.complain(fmt::format("slurm-icp: step {}: {}", step(), hang_text(idle)));
  }
  idle_told_ = idle.count() > 0;
}

// The calls that a version makes in the processes are not theirs.
template <typename Take>
auto StepAgent::take_apart(const Take& take) {
  const bool looks = config_.hang_after.count() > 0;
  if (looks && versions_.begun() && is_active()) active_at_ = std::chrono::steady_clock::now();
  auto taken = take();
  if (looks && versions_.begun()) activity_.look(all_processes());
  return taken;
}

bool StepAgent::take_version(Hold* hold) {
  return take_apart([&] { return versions_.take(hold); });
}

std::string StepAgent::take_version(const net::BeginRound& begin, Hold* hold) {
  return take_apart([&] { return versions_.take(begin, *link_, hold); });
}

// ---- the agent's own timer ----------------------------------------------------------------------

void StepAgent::start_timer() {
  due_ = std::chrono::steady_clock::now() + interval_;
  wait_until(due_);
}

void StepAgent::wait_until(std::chrono::steady_clock::time_point when) {
  timer_.expires_at(when);
  timer_.async_wait([this](boost::system::error_code error) {
    if (!error) on_timer();
  });
}

void StepAgent::on_timer() {
  // The coordinator's timer holds while it is there; a version of several nodes is nothing one of them can decide.
  if (versions_.left_to_steps()) return look_after_script();
  const bool own = !several_capsules() && !(link_ && link_->scheduled());
  // Something is there and does not answer: a version is due, and nobody has been told yet.
  if (link_ && !link_->scheduled() && std::chrono::steady_clock::now() - link_since_ > kPatience) {
    tell_absence("it does not answer");
  }
  const bool again = own && take_version(nullptr);
  if (own && link_ && !again) link_->set_hello(hello());
  if (!versions_.begun()) return;
  const auto now = std::chrono::steady_clock::now();
  // From when this one was due; intervals that it overran are left out.
  while (due_ <= now) due_ += interval_;
  wait_until(again ? std::min(due_, now + kRetry) : due_);
}

// The batch script itself gets no versions any more. A user who has a long part of it without steps should know that.
void StepAgent::look_after_script() {
  constexpr int kTimes = 2;  // between two steps there is none for a moment
  without_steps_ = runs_srun(versions_.roots()) ? 0 : without_steps_ + 1;
  if (without_steps_ == kTimes) {
    return notices_.complain(
        fmt::format("slurm-icp: step {}: no checkpoints of the script itself after its first step; what srun starts is "
                    "checkpointed: start long parts of the script by srun",
                    step()));
  }
  due_ = std::chrono::steady_clock::now() + interval_;
  wait_until(due_);
}

}  // namespace icp
