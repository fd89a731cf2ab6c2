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
#include "coordinator/icpstepd/network_exchange.h"
#include "coordinator/icpstepd/restart_dir.h"
#include "engine/base/error.h"
#include "engine/base/process_signal.h"
#include "engine/base/procfs.h"

namespace icp {

using protocol::Packet;
using protocol::Received;
namespace {

constexpr auto kWatchInterval = std::chrono::milliseconds(500);
constexpr int kPartsTimeout = 15'000;                   // ms; slurmstepd waits a little longer for this agent
constexpr auto kRetry = std::chrono::milliseconds(70);  // no divisor of what programs like to sleep

// What a task says of one of its streams.
StreamId stream_in(const Packet& packet, const std::string& name) {
  const auto number = [&](const char* key) { return static_cast<uint64_t>(packet.number(key + name).value_or(0)); };
  return {number("dev"), number("ino"), static_cast<uint32_t>(number("mode")), number("rdev")};
}

// It lies beside this program.
std::string proxy_path() {
  std::string self(4096, '\0');
  const ssize_t length = ::readlink("/proc/self/exe", self.data(), self.size());
  self.resize(length > 0 ? static_cast<size_t>(length) : 0);
  return self.substr(0, self.rfind('/') + 1) + "icp-proxy";
}

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
      named_restarts_(facts_.restarts),
      config_(std::move(config)),
      problem_(std::move(problem)),
      control_(io_, control.release()),
      ready_(io_, tasks.release()),
      timer_(io_),
      watch_timer_(io_),
      hold_timer_(io_),
      signals_(io_, SIGTERM, SIGINT, SIGHUP),
      notices_([this](const std::string& line, bool complaint) {
        tell_user(line);
        if (complaint) tell_script(line);
      }),
      versions_(facts_, config_, notices_) {
  std::string why;
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
  watch(control_, [this] { on_control(); });
  watch(ready_, [this] { on_ready(); });
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

// Calls `ready` each time the socket can be read (or has ended). The socket may be destroyed meanwhile.
void StepAgent::watch(Socket& socket, std::function<void()> ready) {
  socket.async_wait(Socket::wait_read, [ready = std::move(ready)](boost::system::error_code error) {
    if (!error) ready();
  });
}

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
  watch(control_, [this] { on_control(); });
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

// What it has said by now, in the middle of something else.
void StepAgent::hear_slurmstepd() {
  Packet packet;
  while (protocol::receive_packet(control_.native_handle(), packet, 0) == Received::kPacket) {
    packet.close_fds();
    if (packet.type == protocol::kGoodbye) return boost::asio::post(io_, [this] { finish(true); });
    slurmstepd_said(packet);
  }
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
  if (goodbye && all_well && !terminated_ && !image_.empty() && !facts_.interval.empty() && !capsule_agents_) {
    mark_completed(image_, facts_);
  }
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
    if (!plan_) {
      // The prolog, which notes how often the job was requeued, is not always run again (seen with Slurm 22.05). The
      // user's environment says it, too: good enough for the choice among the user's images.
      constexpr int64_t kMostRestarts = 1'000'000;
      const int64_t restarts = std::clamp<int64_t>(packet.number("restarts").value_or(0), 0, kMostRestarts);
      facts_.restarts = std::max(facts_.restarts, static_cast<uint32_t>(restarts));
      decide(packet.get("cwd"));
    }
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
  watch(ready_, [this] { on_ready(); });
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
  if (facts_.restarts > 0 && facts_.restart_dir != "none") chosen = wanted_restart_dir(config_, facts_);
  if (!chosen.empty()) facts_.restart_dir = chosen;
  plan_ = plan_start(facts_, image_, cwd, facts_.restarts, !chosen.empty());
  if (plan_->kind == StartPlan::kFail && several_capsules()) {
    plan_->kind = StartPlan::kRestart;  // the others must hear of it, and the proxies wait for that
    refuse_restart(Error(ErrorKind::kUsage, plan_->text));
  } else if (plan_->kind == StartPlan::kRestart) {
    spdlog::info("restart from {}", plan_->image);
    choose_capsules();
    if (!refused_ && plan_->kind == StartPlan::kRestart) unmark_completed(image_, identity_of(facts_));
  }
  if (plan_->kind == StartPlan::kRestart && several_capsules() && !capsule_agents_) start_link();
}

void StepAgent::answer(Task& task) {
  Packet packet;
  if (plan_->kind == StartPlan::kFail) {
    fail_task(task, plan_->text.empty() ? "" : "cannot restart: " + plan_->text);
    return;
  }
  if (plan_->kind == StartPlan::kRestart) {
    packet = Packet(protocol::kRestart);
    packet.set("proxy", proxy_path());
    task.state = Task::kProxy;
  } else {
    packet = Packet(protocol::kRun);
    const bool first = task.rank == tasks_.begin()->first;
    if (first && asked() && !plan_->text.empty()) packet.set("text", "step " + step() + ": " + plan_->text);
    if (wants_guards()) {
      // Elsewhere SIGTERM reaches the program, too.
      const bool guarded = signalled_by_slurm(task.pid, facts_.slurm_conf) == Signalled::kTask;
      if (guarded) packet.set("guard", proxy_path());
      if (!guarded && task.rank == tasks_.begin()->first)
        packet.set("text", "step " + step() + ": no version before SIGTERM: that needs proctrack/cgroup");
    }
    if (problem_.empty()) pmix_.let_run(packet, proxy_path());
    task.state = Task::kStarting;
  }
  protocol::send_packet(task.socket->native_handle(), packet);
  packet.close_fds();
  watch(*task.socket, [this, &task] { on_task_socket(task); });
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
  if (got == Received::kNothing) return watch(*task.socket, [this, &task] { on_task_socket(task); });
  if (task.state == Task::kProxy && got == Received::kPacket) {
    on_proxy(task, packet);
    if (task.socket) watch(*task.socket, [this, &task] { on_task_socket(task); });
    return;
  }
  packet.close_fds();
  if (got == Received::kPacket) {
    on_guard(task, packet);
    if (task.socket) watch(*task.socket, [this, &task] { on_task_socket(task); });
    return;
  }
  task.socket.reset();
  if (task.state == Task::kProxy) return on_proxy_gone(task);
  // Closed at exec: the task runs its own program (or has ended, which slurmstepd will say).
  if (task.state == Task::kStarting) task.state = Task::kRunning;
  begin_versions_when_all_run();
}

// ---- guards ------------------------------------------------------------------------------------

// What is taken before SIGTERM is a version of this node alone.
bool StepAgent::wants_guards() const {
  return (has_moment(moments_, kPreempt) || has_moment(moments_, kCancel)) && !several_capsules() && problem_.empty() &&
         !(facts_.step == protocol::kBatchStep && config_.batch == BatchPolicy::kNever);
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
  if (packet.type != protocol::kSignal || packet.number("signal") != std::optional<int64_t>(SIGTERM)) return;
  version_before_end();
  if (hold_term()) return;
  protocol::send_packet(task.socket->native_handle(), Packet(protocol::kSignal).set_number("signal", SIGTERM));
}

// A preempted job is requeued when its GraceTime is over, if it still runs then: one whose program ended at SIGTERM
// would be taken for done. Who sent SIGTERM for something else and sends no SIGKILL waits that long.
bool StepAgent::hold_term() {
  constexpr std::chrono::minutes kHold{5};
  if (!terminated_ || !has_moment(moments_, kPreempt)) return false;
  hold_timer_.expires_after(kHold);
  hold_timer_.async_wait([this](boost::system::error_code error) {
    if (!error) hand_on_term();
  });
  return true;
}

void StepAgent::hand_on_term() {
  for (auto& [rank, task] : tasks_) {
    if (task.socket && task.child != 0)
      protocol::send_packet(task.socket->native_handle(), Packet(protocol::kSignal).set_number("signal", SIGTERM));
  }
  if (!capsule_) return;
  for (const TaskRoot& root : capsule_->roots()) signal_process(root.pid, root.start_time, SIGTERM);
}

// Once for all tasks: each gets its SIGTERM then.
void StepAgent::version_before_end() {
  if (terminated_ || !versions_.begun() || versions_.left_to_steps()) return;
  const auto before = highest_versions(image_, facts_).second;
  constexpr int kTries = 3;
  for (int tries = 0; tries < kTries && versions_.take(); tries++) {
  }
  const auto taken = highest_versions(image_, facts_).second;
  if (taken == before) return;
  terminated_ = true;
  mark_vacated(image_, identity_of(facts_), image_);
  if (link_) link_->set_hello(hello());
  notices_.say(fmt::format("slurm-icp: step {}: version {} was taken when SIGTERM came", step(), taken));
}

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
    prepare_image_path(image_, identity_of(facts_), facts_.restarts > 0 || tasks_.begin()->first != 0);
    unmark_completed(image_, identity_of(facts_));
    unmark_vacated(image_, identity_of(facts_));
    SessionConfig config = versions_.session_config(image_, task_streams());
    pmix_.add_stream(config.outer);
    config.more_processes = [this] { return orphans(); };
    config.ended_tasks = [this] { return ended_tasks(); };
    join_network(config);
    start_versions(Session(std::move(config), roots));
  } catch (const Error& error) {
    spdlog::error("{}", error.what());
    problem_ = error.what();
    if (!asked()) return;
    notices_.complain(fmt::format("slurm-icp: step {}: no checkpoints: {}{}{} (the job runs on)", step(), error.what(),
                                  error.remedy().empty() ? "" : "; ", error.remedy()));
  }
}

// Processes of the step that may have lost their parents: its cgroup knows them.
std::vector<pid_t> StepAgent::orphans() const {
  for (const auto& [rank, task] : tasks_) {
    try {
      if (task.state != Task::kRunning) continue;
      std::vector<pid_t> pids = step_processes(task.pid);
      std::erase_if(pids, [this](pid_t pid) { return is_guard(pid); });
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
  if (!facts_.checkpoint_on.empty() && config_.coordinators.empty() && has_moment(moments_, kAtTimeLimit))
    notices_.complain(fmt::format(
        "slurm-icp: step {}: no checkpoint before the time limit: that needs a coordinator (icpctld)", step()));
  if (!config_.coordinators.empty() && !link_) start_link();
  if (interval_.count() > 0) start_timer();
}

// ---- the coordinator ----------------------------------------------------------------------------

net::AgentHello StepAgent::hello() const {
  net::AgentHello hello;
  hello.set_job(facts_.job);
  hello.set_step(facts_.step);
  hello.set_restarts(named_restarts_);
  hello.set_uid(facts_.uid);
  hello.set_node(facts_.capsule);
  hello.set_host(facts_.node);
  hello.set_nodes(facts_.capsules);
  hello.set_tasks(facts_.local_tasks);
  hello.set_interval_ms(static_cast<uint64_t>(interval_.count()));
  hello.set_image(image_);
  hello.set_at_time_limit(has_moment(moments_, kAtTimeLimit));
  hello.set_requeue_max(facts_.requeue_max == protocol::StepFacts::kNoRequeueMax ? config_.requeue_max
                                                                                 : facts_.requeue_max);
  hello.set_restoring(plan_ && plan_->kind == StartPlan::kRestart && !versions_.begun() && several_capsules());
  const auto [highest, committed] = highest_versions(image_, facts_);
  hello.set_highest_version(highest);
  hello.set_committed(committed);
  for (const net::VersionNumbers& numbers : versions_.recent()) *hello.add_recent() = numbers;
  return hello;
}

void StepAgent::start_link() {
  CoordinatorLink::Events events;
  events.begin = [this](const net::BeginRound& begin) {
    const std::string image = versions_.take(begin, *link_);
    if (!image.empty() && begin.kill()) mark_vacated(image_, identity_of(facts_), image);
    link_->set_hello(hello());
  };
  events.changed = [this](const std::string& why) { on_link_changed(why); };
  events.missed = [this](const std::string& why) {
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

void StepAgent::join_network(SessionConfig& config) {
  if (!several_capsules()) return;
  config.network.inside_job = [this](const std::vector<ConnectionEnd>& ends, bool stopped) {
    return versions_.connections_inside(ends, stopped);
  };
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
  const bool again = own && versions_.take();
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
