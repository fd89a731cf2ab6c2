// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/step_agent.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>

#include <algorithm>
#include <utility>

#include "coordinator/checkpoint_moments.h"
#include "coordinator/duration.h"
#include "coordinator/icpstepd/agent_broker.h"
#include "coordinator/icpstepd/batch_script.h"
#include "coordinator/icpstepd/restart_dir.h"
#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {

using protocol::Packet;
using protocol::Received;
namespace {

constexpr auto kWatchInterval = std::chrono::milliseconds(500);
constexpr int kPartsTimeout = 15'000;  // ms; slurmstepd waits a little longer for this agent

// What a task says of one of its streams.
StreamId stream_in(const Packet& packet, const std::string& name) {
  const auto number = [&](const char* key) { return static_cast<uint64_t>(packet.number(key + name).value_or(0)); };
  return {number("dev"), number("ino"), static_cast<uint32_t>(number("mode")), number("rdev")};
}

// Of this program: the others lie beside it.
std::string own_directory() {
  std::string self(4096, '\0');
  const ssize_t length = ::readlink("/proc/self/exe", self.data(), self.size());
  self.resize(length > 0 ? static_cast<size_t>(length) : 0);
  return self.substr(0, self.rfind('/'));
}

std::string proxy_path() { return own_directory() + "/icp-proxy"; }

// Empty when it has ended.
std::string processors_of(pid_t pid) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (::sched_getaffinity(pid, sizeof cpus, &cpus) != 0) return {};
  return {reinterpret_cast<const char*>(&cpus), sizeof cpus};
}

}  // namespace

StepAgent::StepAgent(protocol::StepFacts facts, Config config, std::string problem, UniqueFd control, UniqueFd tasks)
    : facts_(std::move(facts)),
      config_(std::move(config)),
      problem_(std::move(problem)),
      control_(io_, control.release()),
      ready_(io_, tasks.release()),
      timer_(io_),
      watch_timer_(io_),
      last_timer_(io_),
      hang_timer_(io_),
      signals_(io_, SIGTERM, SIGINT, SIGHUP),
      notices_([this](const std::string& line, bool complaint) {
        tell_user(line);
        if (complaint) tell_script(line);
      }),
      versions_(facts_, config_, notices_, [this] { return launched_.running(); }),
      launched_(io_, facts_.job) {
  std::string why;
  facts_.capsule = launched_capsule(facts_.capsule, facts_.launched);
  moments_ = facts_.checkpoint_on.empty() ? config_.checkpoint_on : facts_.checkpoint_on;
  if (moments_ == "none") moments_.clear(), facts_.checkpoint_on.clear();
  if (!facts_.interval.empty()) interval_ = parse_duration(facts_.interval, why).value_or(interval_);
  if (interval_.count() > 0) interval_ = std::max(interval_, config_.min_interval);
  if (several_capsules() && config_.coordinators.empty() && problem_.empty()) {
    problem_ = "the step has tasks on several nodes, and those are checkpointed only with a coordinator (icpctld)";
  }
}

StepAgent::~StepAgent() = default;

void StepAgent::run() {
  when_readable(control_, [this] { on_control(); });
  when_readable(ready_, [this] { on_ready(); });
  signals_.async_wait([this](boost::system::error_code error, int) {
    if (!error) finish(false);
  });
  if (config_.ipc == IpcPolicy::kHost) on_watch_timer();
  io_.run();
}

void StepAgent::on_watch_timer() {
  std::vector<pid_t> pids;
  for (const auto& [rank, task] : tasks_) {
    if (task.state != Task::kEnded && task.pid > 0) pids.push_back(task.pid);
  }
  watch_ipc(pids);
  watch_timer_.expires_after(kWatchInterval);
  watch_timer_.async_wait([this](boost::system::error_code error) {
    if (!error) on_watch_timer();
  });
}

void StepAgent::watch_ipc(const std::vector<pid_t>& tasks) {
  if (config_.ipc != IpcPolicy::kHost) return;
  try {
    look_at_ipc(tasks);
  } catch (const Error& error) {
    spdlog::warn("{}", error.what());
  }
}

// Once: all tasks of the step have one group for it.
void StepAgent::charge(pid_t task) {
  if (std::exchange(charged_, true)) return;
  try {
    charge_to_step(task);
  } catch (const Error& error) {
    spdlog::warn("the agent's memory is not charged to the step: {}", error.what());
  }
}

std::string StepAgent::step() const { return fmt::format("{}.{}", facts_.job, protocol::step_name(facts_.step)); }

StepAgent::Task* StepAgent::find(int64_t rank) {
  const auto found = rank < 0 || rank > INT32_MAX ? tasks_.end() : tasks_.find(static_cast<int>(rank));
  return found == tasks_.end() ? nullptr : &found->second;
}

// ---- slurmstepd -------------------------------------------------------------------------------

void StepAgent::on_control() {
  Packet packet;
  while (true) {
    const Received got = protocol::receive_packet(control_.native_handle(), packet, 0);
    if (got == Received::kNothing) break;
    if (got == Received::kClosed) return finish(false);
    if (got == Received::kBroken) continue;
    packet.close_fds();
    if (packet.type == protocol::kGoodbye) return finish(true);
    slurmstepd_said(packet);
  }
  when_readable(control_, [this] { on_control(); });
}

void StepAgent::slurmstepd_said(const Packet& packet) {
  if (capsule_agents_) capsule_agents_->slurmstepd_said(packet);
  const auto rank = packet.number("rank");
  if (packet.type == protocol::kTask && rank) {
    Task& task = tasks_[static_cast<int>(*rank)];
    task.rank = static_cast<int>(*rank);
    task.pid = static_cast<pid_t>(packet.number("pid").value_or(0));
    watch_ipc({task.pid});
    charge(task.pid);
  } else if (packet.type == protocol::kTaskExit && rank) {
    Task* const task = find(*rank);
    if (task == nullptr) return;
    task->status = static_cast<int>(packet.number("status").value_or(-1));
    task->state = Task::kEnded;
    task->socket.reset();
    begin_versions_when_all_run();
  }
}

// What it has said by now, in the middle of something else. False: the step is over.
bool StepAgent::hear_slurmstepd() {
  Packet packet;
  Received got;
  while ((got = protocol::receive_packet(control_.native_handle(), packet, 0)) == Received::kPacket) {
    packet.close_fds();
    if (packet.type == protocol::kGoodbye) {
      boost::asio::post(io_, [this] { finish(true); });
      return false;
    }
    slurmstepd_said(packet);
  }
  return got != Received::kClosed;  // which is seen again
}

void StepAgent::take_names(size_t tasks) {
  constexpr int kNameTimeout = 1000;  // ms; it has said them before it let any task run
  Packet packet;
  while (tasks_.size() < tasks &&
         protocol::receive_packet(control_.native_handle(), packet, kNameTimeout) == Received::kPacket) {
    packet.close_fds();
    slurmstepd_said(packet);
  }
}

void StepAgent::finish(bool goodbye) {
  watch_ipc({});  // what was made since the last look, and by the last processes
  // Ended by themselves with status 0, all of them: a later requeue of the job must not restart this step.
  const bool all_well = !tasks_.empty() && tasks_.size() == facts_.local_tasks &&
                        std::all_of(tasks_.begin(), tasks_.end(),
                                    [](const auto& entry) { return entry.second.status == std::optional<int>(0); });
  if (goodbye && all_well && facts_.launched == 0 && !terminated_ && !image_.empty() && goes_on_by_itself(facts_) &&
      !capsule_agents_) {
    mark_completed(image_, facts_);
  }
  mark_end(all_well);
  // Killed, that is: what the launcher makes of it is no end of the script that it would have come to.
  const bool cut = std::any_of(tasks_.begin(), tasks_.end(), [](const auto& entry) {
    const int status = entry.second.status.value_or(0);
    return WIFSIGNALED(status) && (WTERMSIG(status) == SIGTERM || WTERMSIG(status) == SIGKILL);
  });
  if (facts_.launched != 0 && cut && !image_.empty()) mark_cut(image_, facts_.capsule, identity_of(facts_));
  spdlog::info("end of the step{}", goodbye ? "" : ": slurmstepd is gone");
  if (capsule_agents_) capsule_agents_->goodbye(goodbye ? kPartsTimeout : 0);
  capsule_agents_.reset();
  if (link_) {
    net::ToCoordinator message;
    message.mutable_end()->set_completed(all_well);
    link_->say(message);
  }
  versions_.stop();
  if (capsule_) capsule_->kill();
  io_.stop();
}

// ---- tasks before their exec -------------------------------------------------------------------

void StepAgent::on_ready() {
  Packet packet;
  while (true) {
    const Received got = protocol::receive_packet(ready_.native_handle(), packet, 0);
    if (got == Received::kNothing) break;
    if (got == Received::kClosed) return;  // slurmstepd and all tasks have closed it
    if (got != Received::kPacket) continue;
    take_names(facts_.local_tasks);
    Task* const task = find(packet.number("rank").value_or(-1));
    if (task == nullptr || packet.fds.size() != 1 || packet.type != protocol::kReady || task->state != Task::kForked ||
        packet.number("pid") != std::optional<int64_t>(task->pid)) {
      spdlog::error("a process that is not a task of the step announced itself");
      packet.close_fds();
      continue;
    }
    if (!plan_) decide(packet.get("cwd"));
    if (capsule_agents_) {
      capsule_agents_->task_said(packet);
      continue;
    }
    task->socket = std::make_unique<Socket>(io_, packet.fds[0]);
    for (size_t fd = 0; fd < task->streams.size(); fd++) task->streams[fd] = stream_in(packet, std::to_string(fd));
    task->pmi = stream_in(packet, "pmi");
    pmix_.task_said(packet);
    task->cpus = processors_of(task->pid);
    answer(*task);
  }
  when_readable(ready_, [this] { on_ready(); });
}

void StepAgent::decide(const std::string& cwd) {
  image_ = own_image_path(facts_, config_, cwd);
  plan_ = StartPlan{};
  if (!problem_.empty()) {
    if (!facts_.restart_dir.empty() && facts_.restart_dir != "none") plan_->kind = StartPlan::kFail;
    plan_->text = problem_;
    if (plan_->kind == StartPlan::kFresh) plan_->text = "no checkpoints of this step: " + problem_;
    return;
  }
  if (facts_.step == protocol::kBatchStep && config_.batch == BatchPolicy::kNever) return;
  // Asked for by name after the job was submitted: it beats what the submission says.
  std::string chosen;
  if (facts_.restarts > 0 && facts_.restart_dir != "none" && facts_.launched == 0)
    chosen = wanted_restart_dir(config_, facts_);
  if (!chosen.empty()) facts_.restart_dir = chosen;
  plan_ = plan_start(facts_, image_, cwd, facts_.restarts, !chosen.empty());
  if (plan_->lost && !config_.coordinators.empty() && config_.restart_attempts > 0) {
    plan_->kind = StartPlan::kFail;  // icpctld holds the job, and what it had done is not lost for good
  } else if (plan_->kind == StartPlan::kFresh && !plan_->text.empty()) {
    plan_->text += ": the step starts from the beginning";
  }
  if (plan_->kind == StartPlan::kFail && several_capsules()) {
    plan_->kind = StartPlan::kRestart;  // the others must hear of it, and the proxies wait for that
    refuse_restart(Error(ErrorKind::kUsage, plan_->text));
  } else if (plan_->kind == StartPlan::kRestart) {
    spdlog::info("restart from {}", plan_->image);
    // In its own image they are the new ones already.
    if (plan_->image != image_) plan_->path_map = parse_map_path(facts_.map_path).value_or(PathMap{});
    choose_capsules();
    if (!refused_ && plan_->kind == StartPlan::kRestart) unmark_completed(image_, identity_of(facts_));
  }
  if (plan_->kind == StartPlan::kRestart && several_capsules() && !capsule_agents_) start_link();
}

void StepAgent::answer(Task& task) {
  Packet packet;
  if (plan_->kind == StartPlan::kFail) {
    if (task.rank == tasks_.begin()->first && !plan_->text.empty()) tell_coordinator_of_failure(plan_->text);
    fail_task(task, plan_->text.empty() ? "" : "cannot restart: " + plan_->text);
    return;
  }
  if (plan_->kind == StartPlan::kRestart) {
    packet = Packet(protocol::kRestart);
    packet.set("proxy", proxy_path());
    begin_launching(packet);
    task.state = Task::kProxy;
  } else {
    packet = Packet(protocol::kRun);
    const bool first = task.rank == tasks_.begin()->first;
    if (first && asked() && !plan_->text.empty()) packet.set("text", "step " + step() + ": " + plan_->text);
    if (wants_guards()) {
      // Elsewhere SIGTERM reaches the program, too.
      const bool guarded = signalled_by_slurm(task.pid, facts_.slurm_conf) == Signalled::kTask;
      if (guarded) packet.set("guard", proxy_path());
      if (guarded && has_moment(moments_, kAtSignal)) packet.set("guard_asks", "signals");
      if (!guarded && task.rank == tasks_.begin()->first)
        packet.set("text", "step " + step() + ": no version before signals: that needs proctrack/cgroup");
    }
    if (problem_.empty()) pmix_.let_run(packet, proxy_path());
    begin_launching(packet);
    task.state = Task::kStarting;
  }
  protocol::send_packet(task.socket->native_handle(), packet);
  packet.close_fds();
  when_readable(*task.socket, [this, &task] { on_task_socket(task); });
}

// A version of several steps needs icpctld.
bool StepAgent::may_launch() const {
  return facts_.step == protocol::kBatchStep && problem_.empty() && !config_.coordinators.empty() &&
         config_.batch != BatchPolicy::kNever;
}

void StepAgent::begin_launching(Packet& answer) {
  if (!may_launch()) return;
  try {
    launched_.begin(answer, own_directory(), image_);
  } catch (const Error& error) {
    spdlog::warn("no launcher beside the script: {}", error.what());
    if (launched_.any()) refuse_restart(error);
  }
}

void StepAgent::fail_task(Task& task, const std::string& text) {
  if (!text.empty()) spdlog::error("{}", text);
  const bool says = !text.empty() && task.rank == tasks_.begin()->first;  // one line is enough
  protocol::send_packet(task.socket->native_handle(),
                        Packet(protocol::kFail).set("text", says ? "step " + step() + ": " + text : ""));
  task.state = Task::kEnded;
  task.socket.reset();
}

void StepAgent::on_task_socket(Task& task) {
  if (!task.socket) return;
  Packet packet;
  const Received got = protocol::receive_packet(task.socket->native_handle(), packet, 0);
  if (got == Received::kNothing) return when_readable(*task.socket, [this, &task] { on_task_socket(task); });
  if (task.state == Task::kProxy && got == Received::kPacket) {
    on_proxy(task, packet);
    if (task.socket) when_readable(*task.socket, [this, &task] { on_task_socket(task); });
    return;
  }
  packet.close_fds();
  if (got == Received::kPacket) {
    on_guard(task, packet);
    if (task.socket) when_readable(*task.socket, [this, &task] { on_task_socket(task); });
    return;
  }
  task.socket.reset();
  if (task.state == Task::kProxy) return on_proxy_gone(task);
  // Closed at exec: the task runs its own program (or has ended, which slurmstepd will say).
  if (task.state == Task::kStarting) task.state = Task::kRunning;
  begin_versions_when_all_run();
}

// Of a step whose own output the user may never see.
void StepAgent::tell_script(const std::string& line) {
  if (facts_.step < 0) return;
  for (const auto& [rank, task] : tasks_) {
    if (task.state != Task::kEnded && task.pid > 0) return tell_batch_script(task.pid, line);
  }
}

void StepAgent::tell_user(const std::string& line) {
  for (auto& [rank, task] : tasks_) {
    if (task.state == Task::kProxy && task.socket) {
      if (protocol::send_packet(task.socket->native_handle(), Packet(protocol::kSay).set("text", line))) return;
    } else if (task.state != Task::kEnded && task.pid > 0 && write_to_task(task.pid, task.streams[2], line)) {
      return;
    }
  }
  spdlog::info("not told to the user: {}", line);
}

}  // namespace icp
