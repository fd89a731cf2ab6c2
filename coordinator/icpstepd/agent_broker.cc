// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/agent_broker.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "coordinator/icpstepd/cgroups.h"
#include "coordinator/icpstepd/coordinator_link.h"
#include "coordinator/icpstepd/ipc_watch.h"
#include "coordinator/icpstepd/kept_number.h"
#include "coordinator/log_budget.h"
#include "coordinator/protocol/agent_sockets.h"
#include "coordinator/protocol/connection.h"
#include "coordinator/protocol/munge_auth.h"
#include "engine/base/error.h"
#include "engine/base/process_signal.h"
#include "engine/base/procfs.h"
#include "engine/base/socket_pair.h"
#include "engine/broker/broker.h"
#include "engine/sysv/run_dir.h"

namespace icp {
namespace {

enum Operation : uint32_t { kCredential = 100, kLog, kCharge, kLookAtIpc, kHasSteps, kStartPart, kJoinStep };

constexpr size_t kLongestLine = 8192;                             // bytes of a line in the log
constexpr size_t kMostTasks = 1 << 16;                            // pids in a request
constexpr size_t kMostStarts = 8;                                 // of one capsule's agent, on average
constexpr auto kLongestAlone = std::chrono::hours(1);             // without slurmstepd
constexpr auto kCredentialPause = std::chrono::milliseconds(50);  // munged is everybody's

// ---- in the broker -------------------------------------------------------------------------------------------------

pid_t spawn(const std::vector<std::string>& words, int control, int tasks) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, control, protocol::kAgentControl);
  posix_spawn_file_actions_adddup2(&actions, tasks, protocol::kAgentTasks);
  posix_spawn_file_actions_addclosefrom_np(&actions, protocol::kAgentTasks + 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  sigset_t usual;
  sigemptyset(&usual);
  sigaddset(&usual, SIGCHLD);  // which the broker ignores
  posix_spawnattr_setsigdefault(&attributes, &usual);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  pid_t pid = 0;
  const int error = ::posix_spawn(&pid, "/proc/self/exe", &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    throw Error(ErrorKind::kSystem, fmt::format("cannot start an agent for a capsule: {}", errno_text(error)), error);
  }
  return pid;
}

// Above the numbers that the sockets get in the agent, so that putting one there does not cover the other.
UniqueFd out_of_the_way(const UniqueFd& fd) {
  UniqueFd high(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 10));
  if (!high) throw_errno("cannot duplicate a socket");
  return high;
}

// The operations, with what slurmstepd has said of the step.
class StepBroker {
 public:
  StepBroker(protocol::StepFacts facts, Config config, std::string config_path, int control, bool part)
      : facts_(std::move(facts)),
        config_(std::move(config)),
        config_path_(std::move(config_path)),
        worker_(::getpid()),
        worker_end_(static_cast<int>(::syscall(SYS_pidfd_open, worker_, 0))),
        starter_(starter_of(control)),
        most_parts_(part ? 0 : facts_.local_tasks),
        own_places_(cgroups_of(::getpid())) {}

  // What a worker may ask icpctld in root's name: to be the agent of this very step.
  Message credential(MessageReader& reader) {
    const std::string payload(reader.take_text());
    const auto to = reader.take<uid_t>();
    if (!net::is_client_payload(payload) || to != uid_of_coordinator(config_))
      throw_error(ErrorKind::kPermission, "root makes no such credential");
    std::this_thread::sleep_until(next_credential_);
    next_credential_ = std::chrono::steady_clock::now() + kCredentialPause;
    const net::AgentName name{facts_.job, protocol::step_of_versions(facts_), facts_.restarts, facts_.uid};
    return std::move(Message().put_text(net::MungeAuth(config_.munge_socket).encode(payload + name.text(), to)));
  }

  Message log(MessageReader& reader) {
    const auto level = reader.take<int>();
    const std::string_view line = reader.take_text().substr(0, kLongestLine);
    if (level >= spdlog::level::trace && level < spdlog::level::off)
      write(static_cast<spdlog::level::level_enum>(level), line);
    return {};
  }

  Message charge(MessageReader& reader) const {
    const auto task = reader.take<pid_t>();
    // Its other groups it may not have yet: it is at its very beginning.
    std::vector<CgroupPlace> memory = cgroups_of(task);
    std::erase_if(memory, [](const CgroupPlace& place) { return !place.is_memory(); });
    if (memory.empty()) return {};  // version 2
    const auto places = places_in_job(memory, groups(), facts_.job);
    if (!places) throw_error(ErrorKind::kPermission, "process {} is not of job {}", task, facts_.job);
    with_kept_number(worker_, [&] {
      check_worker();
      join_memory_of_step(worker_, *places);
    });
    return {};
  }

  // All ids that a task may have are its user's, or it cannot be the user's word that makes its objects the job's.
  Message look_at_ipc(MessageReader& reader) {
    std::vector<pid_t> tasks = reader.take_all<pid_t>();
    if (tasks.size() > kMostTasks) throw_error(ErrorKind::kUsage, "too many tasks");
    const std::vector<CgroupPlace>& job = groups();
    std::erase_if(tasks, [&](pid_t task) { return !is_own(task) || !in_job(task, job); });
    if (!ipc_watch_)
      ipc_watch_.emplace(facts_, config_, [this](const std::string& text) { write(spdlog::level::warn, text); });
    ipc_watch_->look(tasks);
    return std::move(Message().put(ipc_watch_->active()));
  }

  Message has_steps() const {
    const auto run_dir = RunDir::find(config_.run_dir, facts_.node);
    const bool there = run_dir && run_dir->open(RunDir::job_file(facts_.job, "steps"), O_RDONLY);
    return std::move(Message().put(there));
  }

  Message start_part(MessageReader& reader) {
    std::erase_if(parts_, has_ended);
    // Each that is started writes some lines of its own into root's log.
    if (parts_.size() >= most_parts_ || started_ >= kMostStarts * most_parts_)
      throw_error(ErrorKind::kPermission, "too many agents of capsules");
    SocketPair control(SOCK_SEQPACKET), tasks(SOCK_SEQPACKET);
    protocol::StepFacts part = facts_;
    part.capsules = reader.take<uint32_t>();
    part.local_tasks = reader.take<uint32_t>();
    part.restart_dir = reader.take_text();
    if (part.local_tasks == 0 || part.local_tasks > facts_.local_tasks || part.capsules > facts_.total_tasks)
      throw_error(ErrorKind::kUsage, "a capsule of {} tasks", part.local_tasks);
    const UniqueFd their_control = out_of_the_way(control.there), their_tasks = out_of_the_way(tasks.there);
    const pid_t pid = spawn({"icpstepd", "step", "--config", config_path_, "--part-of", std::to_string(::getpid())},
                            their_control.get(), their_tasks.get());
    ++started_;
    parts_.emplace_back(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (!parts_.back()) parts_.pop_back();  // it has ended
    if (!protocol::send_packet(control.here.get(), part.to_packet())) throw_errno("cannot speak to a capsule's agent");
    Message reply;
    reply.put(pid).fds.push_back(std::move(control.here));
    reply.fds.push_back(std::move(tasks.here));
    return reply;
  }

  // A child of the agent that is to run where the step does.
  Message join_step(MessageReader& reader) const {
    const auto child = reader.take<pid_t>();
    const std::vector<pid_t> tasks = reader.take_all<pid_t>();
    for (const pid_t task : tasks) {
      if (!is_own(task) || ProcStat::read(task).state == 'Z') continue;  // it has ended
      const auto places = places_of(task);
      if (child <= 0) break;
      with_kept_number(child, [&] {
        if (!is_own(child) || ProcStat::read(child).ppid != worker_)
          throw_error(ErrorKind::kPermission, "process {} is no child of the agent", child);
        join_cgroups(child, places_left(child, places));
      });
      return {};
    }
    throw_error(ErrorKind::kGone, "all tasks of the step have ended");
  }

  // A last version may be written when slurmstepd does not wait for it any more.
  bool over() {
    if (!has_ended(starter_)) return false;
    const auto now = std::chrono::steady_clock::now();
    if (!alone_since_) alone_since_ = now;
    return now - *alone_since_ > kLongestAlone;
  }

  // A helper of the worker's goes where that is.
  std::function<void(pid_t)> join(pid_t pid, pid_t like) const {
    const std::vector<CgroupPlace> places = like == worker_ ? cgroups_of(worker_) : places_of(like);
    check_worker();
    return [left = places_left(pid, places)](pid_t number) { join_cgroups(number, left); };
  }

 private:
  // What the user can bring about, into root's log.
  void write(spdlog::level::level_enum level, std::string_view line) {
    const uint64_t lost = log_budget_.lost();
    if (!log_budget_.take(line.size(), LogBudget::Clock::now())) {
      if (lost == 0) spdlog::warn("its agent says too much: what follows is left out for a while");
      return;
    }
    if (lost > 0) spdlog::warn("{} lines of its agent were left out", lost);
    spdlog::log(level, "{}", line);
  }
  bool is_own(pid_t pid) const {
    try {
      const auto ids = ProcStatus::read(pid).uid;
      return std::all_of(ids.begin(), ids.end(), [this](uid_t id) { return id == facts_.uid; });
    } catch (const Error&) {
      return false;
    }
  }
  // Who made the socket has it still, or else the agent ends anyway.
  static UniqueFd starter_of(int control) {
    ucred maker{};
    socklen_t length = sizeof maker;
    if (::getsockopt(control, SOL_SOCKET, SO_PEERCRED, &maker, &length) != 0) return {};
    return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, maker.pid, 0)));
  }
  // What was read about the worker's number was about the worker.
  void check_worker() const {
    if (has_ended(worker_end_)) throw_error(ErrorKind::kGone, "the worker has ended");
  }
  // Looked for once for all that a restart asks in a row: a node has many groups. The job gets further ones only in the
  // first moments of its first step.
  const std::vector<CgroupPlace>& groups() const {
    constexpr auto kKept = std::chrono::seconds(1);
    const auto now = std::chrono::steady_clock::now();
    if (!groups_ || now - groups_of_ > kKept) {
      groups_ = groups_of_job(job_directories(kCgroupRoot, facts_.node, facts_.uid, {facts_.job, ""}), own_places_);
      groups_of_ = now;
    }
    return *groups_;
  }
  bool in_job(pid_t pid, const std::vector<CgroupPlace>& job) const {
    try {
      return places_in_job(cgroups_of(pid), job, facts_.job).has_value();
    } catch (const Error&) {
      return false;  // it has ended
    }
  }
  // A user's process may be put where the user's job is, and nowhere else: where a process is that is in all of the
  // job's cgroups. They are read once, whatever has that number later.
  std::vector<CgroupPlace> places_of(pid_t pid) const {
    auto places = places_in_job(cgroups_of(pid), groups(), facts_.job);
    if (!places) throw_error(ErrorKind::kPermission, "process {} is not of job {}", pid, facts_.job);
    return std::move(*places);
  }

  const protocol::StepFacts facts_;
  const Config config_;
  const std::string config_path_;
  const pid_t worker_;
  const UniqueFd worker_end_;  // its pidfd
  const UniqueFd starter_;     // that of who has started the agent: slurmstepd
  const size_t most_parts_;
  const std::vector<CgroupPlace> own_places_;
  mutable std::optional<std::vector<CgroupPlace>> groups_;  // and when that was
  mutable std::chrono::steady_clock::time_point groups_of_;
  std::vector<UniqueFd> parts_;  // pidfds of other capsules' agents
  size_t started_ = 0;           // of them, ever
  LogBudget log_budget_;
  std::optional<std::chrono::steady_clock::time_point> alone_since_;  // the starter has ended
  std::optional<IpcWatch> ipc_watch_;
  std::chrono::steady_clock::time_point next_credential_;
};

// ---- in the worker -------------------------------------------------------------------------------------------------

// Lines of the worker go to root's log through the broker.
class BrokerSink final : public spdlog::sinks::base_sink<std::mutex> {
  void sink_it_(const spdlog::details::log_msg& message) override {
    try {
      Message line;
      line.put<int>(message.level).put_text({message.payload.data(), message.payload.size()});
      broker().ask(kLog, std::move(line));
    } catch (const Error&) {
      // There is nowhere else to say it.
    }
  }
  void flush_() override {}
};

}  // namespace

void become_step_worker(const protocol::StepFacts& facts, const Config& config, const std::string& config_path,
                        const std::vector<int>& sockets, bool part) {
  const auto step = std::make_shared<StepBroker>(facts, config, config_path, sockets.front(), part);
  BrokerOptions options;
  options.identity = {facts.uid, facts.gid, facts.groups};
  options.not_for_broker = sockets;
  struct sysinfo info {};
  if (::sysinfo(&info) == 0) options.address_space = 2 * static_cast<uint64_t>(info.totalram) * info.mem_unit;
  options.join = [step](pid_t pid, pid_t like) { return step->join(pid, like); };
  options.over = [step] { return step->over(); };
  options.more = {
      {kCredential, [step](MessageReader& reader, Message&) { return step->credential(reader); }},
      {kLog, [step](MessageReader& reader, Message&) { return step->log(reader); }},
      {kCharge, [step](MessageReader& reader, Message&) { return step->charge(reader); }},
      {kLookAtIpc, [step](MessageReader& reader, Message&) { return step->look_at_ipc(reader); }},
      {kHasSteps, [step](MessageReader&, Message&) { return step->has_steps(); }},
      {kJoinStep, [step](MessageReader& reader, Message&) { return step->join_step(reader); }},
      {kStartPart, [step](MessageReader& reader, Message&) { return step->start_part(reader); }},
  };
  const auto level = spdlog::get_level();
  become_worker(std::move(options));
  if (!broker().separate()) return;
  auto logger = std::make_shared<spdlog::logger>("broker", std::make_shared<BrokerSink>());
  logger->set_level(level);
  spdlog::set_default_logger(std::move(logger));
}

std::string agent_credential(const std::string& payload, uid_t reader) {
  const Message reply = broker().ask(kCredential, std::move(Message().put_text(payload).put(reader)));
  return std::string(MessageReader(reply).take_text());
}

void charge_to_step(pid_t task) {
  if (broker().separate()) broker().ask(kCharge, std::move(Message().put(task)));
}

void join_step(pid_t child, const std::vector<pid_t>& tasks) {
  if (broker().separate()) broker().ask(kJoinStep, std::move(Message().put(child).put_all(tasks)));
}

bool look_at_ipc(const std::vector<pid_t>& tasks) {
  const Message reply = broker().ask(kLookAtIpc, std::move(Message().put_all(tasks)));
  return MessageReader(reply).take<bool>();
}

bool job_has_steps() {
  const Message reply = broker().ask(kHasSteps, {});
  return MessageReader(reply).take<bool>();
}

PartAgent start_part(const protocol::StepFacts& facts) {
  Message request;
  request.put(facts.capsules).put(facts.local_tasks).put_text(facts.restart_dir);
  Message reply = broker().ask(kStartPart, std::move(request));
  if (reply.fds.size() != 2) throw_error(ErrorKind::kSystem, "no agent for a capsule was started");
  return {MessageReader(reply).take<pid_t>(), std::move(reply.fds[0]), std::move(reply.fds[1])};
}

}  // namespace icp
