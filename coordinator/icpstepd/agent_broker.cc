// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/agent_broker.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "coordinator/icpstepd/cgroups.h"
#include "coordinator/icpstepd/coordinator_link.h"
#include "coordinator/icpstepd/ipc_watch.h"
#include "coordinator/protocol/agent_sockets.h"
#include "coordinator/protocol/connection.h"
#include "coordinator/protocol/munge_auth.h"
#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/socket_pair.h"
#include "engine/broker/broker.h"
#include "engine/sysv/run_dir.h"

namespace icp {
namespace {

enum Operation : uint32_t { kCredential = 100, kLog, kCharge, kLookAtIpc, kHasSteps, kStartPart, kJoinStep };

constexpr size_t kLongestLine = 8192;                             // bytes of a line in the log
constexpr size_t kMostTasks = 1 << 16;                            // pids in a request
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
  StepBroker(protocol::StepFacts facts, Config config, std::string config_path)
      : facts_(std::move(facts)), config_(std::move(config)), config_path_(std::move(config_path)) {
    for (const CgroupPlace& place : cgroups_of(::getpid()))
      if (const auto directory = job_directory(place.path)) own_job_[place.controllers] = *directory;
  }

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

  static Message log(MessageReader& reader) {
    const auto level = reader.take<int>();
    const std::string_view line = reader.take_text().substr(0, kLongestLine);
    if (level >= spdlog::level::trace && level < spdlog::level::off)
      spdlog::log(static_cast<spdlog::level::level_enum>(level), "{}", line);
    return {};
  }

  Message charge(MessageReader& reader) const {
    const auto task = reader.take<pid_t>();
    if (!in_job(task)) throw_error(ErrorKind::kPermission, "process {} is not of job {}", task, facts_.job);
    join_memory_of_step(::getppid(), task);
    return {};
  }

  // All ids that a task may have are its user's, or it cannot be the user's word that makes its objects the job's.
  Message look_at_ipc(MessageReader& reader) {
    std::vector<pid_t> tasks = reader.take_all<pid_t>();
    if (tasks.size() > kMostTasks) throw_error(ErrorKind::kUsage, "too many tasks");
    std::erase_if(tasks, [this](pid_t task) { return !is_own(task) || !in_job(task); });
    if (!ipc_watch_) ipc_watch_.emplace(facts_, config_);
    ipc_watch_->look(tasks);
    return std::move(Message().put(ipc_watch_->active()));
  }

  Message has_steps() const {
    const auto run_dir = RunDir::find(config_.run_dir, facts_.node);
    const bool there = run_dir && run_dir->open(RunDir::job_file(facts_.job, "steps"), O_RDONLY);
    return std::move(Message().put(there));
  }

  Message start_part(MessageReader& reader) const {
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
    if (child <= 0 || !is_own(child) || ProcStat::read(child).ppid != ::getppid())
      throw_error(ErrorKind::kPermission, "process {} is no child of the agent", child);
    for (const pid_t task : tasks) {
      if (!is_own(task) || ProcStat::read(task).state == 'Z') continue;  // it has ended
      join(child, task);
      return {};
    }
    throw_error(ErrorKind::kGone, "all tasks of the step have ended");
  }

  void join(pid_t pid, pid_t like) const {
    if (!in_job(like)) throw_error(ErrorKind::kPermission, "process {} is not of job {}", like, facts_.job);
    join_cgroups(pid, like);
  }

 private:
  bool is_own(pid_t pid) const {
    try {
      return ProcStatus::read(pid).uid[0] == facts_.uid;
    } catch (const Error&) {
      return false;
    }
  }
  // Its cgroups are nobody else's job's: a user's process may be put where the user's step is, and nowhere else.
  bool in_job(pid_t pid) const {
    for (const CgroupPlace& place : cgroups_of(pid)) {
      const auto directory = job_directory(place.path);
      if (const auto own = own_job_.find(place.controllers); own != own_job_.end()) {
        if (directory != own->second) return false;
      } else if (directory && !directory->ends_with("/job_" + std::to_string(facts_.job))) {
        return false;
      }
    }
    return true;
  }

  const protocol::StepFacts facts_;
  const Config config_;
  const std::string config_path_;
  // By controllers: where slurmstepd itself is in the job's groups, as under version 2, whatever these are called.
  std::map<std::string, std::string> own_job_;
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
                        const std::vector<int>& sockets) {
  const auto step = std::make_shared<StepBroker>(facts, config, config_path);
  BrokerOptions options;
  options.identity = {facts.uid, facts.gid, facts.groups};
  options.not_for_broker = sockets;
  struct sysinfo info {};
  if (::sysinfo(&info) == 0) options.address_space = 2 * static_cast<uint64_t>(info.totalram) * info.mem_unit;
  options.join = [step](pid_t pid, pid_t like) { step->join(pid, like); };
  options.more = {
      {kCredential, [step](MessageReader& reader, Message&) { return step->credential(reader); }},
      {kLog, [](MessageReader& reader, Message&) { return StepBroker::log(reader); }},
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
