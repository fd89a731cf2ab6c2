// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/step.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "coordinator/launch/stand_in.h"
#include "engine/base/error.h"
#include "engine/sysv/ledger.h"
#include "engine/sysv/run_dir.h"
#include "spank/agent_link.h"
#include "spank/job_run.h"
#include "spank/launcher.h"
#include "spank/mpi_transports.h"
#include "spank/options.h"
#include "spank/pmix_relay.h"

namespace icp::spank {
namespace {

using protocol::Packet;
using protocol::StepFacts;

constexpr int kAnswerTimeout = 120'000;  // ms, for a task's question; an image on a slow file system takes its time
constexpr int kGoodbyeTimeout = 20'000;  // ms, for a version under way at the step's end

// One step a process: slurmstepd's.
AgentLink agent;
StepFacts facts;
bool asked = false;   // for checkpoints or a restart
bool served = false;  // by an agent, which the tasks announce themselves to
std::string problem;  // why there is no agent though one was asked for
std::string mpi;      // --checkpoint-mpi
std::string denied;   // not empty: why no task of the step may run

// Only the tasks' own end may fail a job without draining the node, hence the sentence waits for start_task().
void put_line(const std::string& text) {
  const std::string line = "slurm-icp: " + text + "\n";
  if (::write(STDERR_FILENO, line.data(), line.size()) < 0) complain(text);
}

// slurmd's name of the node, from the socket at which this slurmstepd listens for it,
// <spool>/<node>_<job>.<step>: Slurm has made it before it loads a plugin, and no user has a say in it. Nothing else
// does tell, since the step's environment is srun's, hence the user's, and hosts may run several slurmds.
std::string name_in_socket() {
  constexpr int kMost = 1024;
  for (int fd = 0; fd < kMost; fd++) {
    sockaddr_un address{};
    socklen_t length = sizeof address;
    int listens = 0;
    socklen_t size = sizeof listens;
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0 || address.sun_family != AF_UNIX ||
        ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || listens == 0) {
      continue;
    }
    const std::string path(address.sun_path, ::strnlen(address.sun_path, sizeof address.sun_path));
    const std::string name = path.substr(path.rfind('/') + 1);
    const size_t end = name.rfind('_');
    if (end != std::string::npos && name.find('.', end) != std::string::npos) return name.substr(0, end);
  }
  return {};
}

std::string node_name() {
  if (std::string name = name_in_socket(); is_node_name(name)) return name;
  if (const char* const name = std::getenv("SLURMD_NODENAME"); name != nullptr) return name;  // slurmstepd's own
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  return host;
}

StepFacts read_facts(spank_t handle) {
  StepFacts step;
  step.job = item<uint32_t>(handle, S_JOB_ID).value_or(0);
  step.step = static_cast<int32_t>(item<uint32_t>(handle, S_JOB_STEPID).value_or(0));
  step.uid = item<uid_t>(handle, S_JOB_UID).value_or(static_cast<uid_t>(-1));
  step.gid = item<gid_t>(handle, S_JOB_GID).value_or(static_cast<gid_t>(-1));
  gid_t* groups = nullptr;
  int count = 0;
  if (spank_get_item(handle, S_JOB_SUPPLEMENTARY_GIDS, &groups, &count) == ESPANK_SUCCESS && count > 0) {
    step.groups.assign(groups, groups + count);
  }
  step.node = node_name();
  step.nodes = item<uint32_t>(handle, S_JOB_NNODES).value_or(1);
  step.local_tasks = item<uint32_t>(handle, S_JOB_LOCAL_TASK_COUNT).value_or(1);
  step.total_tasks = item<uint32_t>(handle, S_JOB_TOTAL_TASK_COUNT).value_or(1);
  const char* const conf = std::getenv("SLURM_CONF");  // slurmd sets it
  step.slurm_conf = conf == nullptr ? "/etc/slurm/slurm.conf" : conf;
  step.slurm_conf.resize(step.slurm_conf.rfind('/') == std::string::npos ? 0 : step.slurm_conf.rfind('/'));
  // Which part of its own job's versions it is, is its user's to say.
  constexpr int kMostLaunched = 9999;
  const int launched = step.step < 0 ? 0 : std::atoi(job_env(handle, launch::kNumberVariable).c_str());
  step.launched = static_cast<uint32_t>(launched < 0 || launched > kMostLaunched ? 0 : launched);
  step.verbose = std::atoi(job_env(handle, "SRUN_DEBUG").c_str()) > 3;  // 3 is srun without -v
  return step;
}

// The job's IPC namespace (mode private), or a place to note what its processes make (mode host). Tasks inherit the
// namespace of this thread. This is the only moment: before it the step is not known, after it (user_init) the rights
// are gone. A job that is to have a namespace of its own does not run in the host's.
void enter_job(const Settings& settings) {
  const bool must = settings.ipc == IpcChoice::kPrivate;
  if (must) denied = "it gets no IPC namespace of its own";  // until it has
  try {
    facts.restarts = restart_count(settings.run_dir, facts.node, facts.job);
    if (settings.ipc != IpcChoice::kOff) {
      const JobLedger ledger = JobLedger::create_or_join(settings.run_dir, facts.node, facts.job, facts.restarts,
                                                         facts.uid, must ? IpcMode::kPrivate : IpcMode::kHost);
      facts.private_ipc = ledger.facts().mode == IpcMode::kPrivate;
    }
    denied.clear();
  } catch (const std::exception& error) {
    complain("job " + std::to_string(facts.job) + ": " + error.what());
    if (must) denied += std::string(": ") + error.what() + "; ask the administrator (`ipc` in icp.yaml)";
  }
}

}  // namespace

void begin_step(spank_t handle, const Settings& settings) {
  facts = read_facts(handle);
  if (facts.job == 0) return;
  enter_job(settings);
  const Request request = requested(handle, facts.job);
  if (denied.empty()) denied = request.refused;
  if (!denied.empty()) return;  // nothing of it will run
  if (facts.step >= 0 && facts.launched == 0 && (request.wants_agent() || settings.on_demand)) {
    try {
      note_numbered_step(settings.run_dir, facts.node, facts.job);
    } catch (const Error& error) {
      complain("job " + std::to_string(facts.job) + ": " + error.what());
    }
  }
  if (facts.step < 0 && facts.step != protocol::kBatchStep) return;
  // `ipc: host` needs somebody who looks at what the job's processes make while they are alive.
  const bool wanted = request.wants_agent() || settings.on_demand;
  if (!wanted && settings.ipc != IpcChoice::kHost) return;
  asked = request.wants_agent();
  served = wanted;
  mpi = request.mpi;
  facts.interval = request.interval;
  facts.checkpoint_dir = request.checkpoint_dir;
  facts.restart_dir = request.restart_dir;
  facts.map_path = request.map_path;
  facts.checkpoint_files = request.checkpoint_files;
  facts.checkpoint_on = request.checkpoint_on;
  facts.requeue_max = request.requeue_max.empty()
                          ? StepFacts::kNoRequeueMax
                          : static_cast<uint32_t>(std::strtoul(request.requeue_max.c_str(), nullptr, 10));
  problem = agent.start(settings, facts);
  if (!problem.empty()) complain("job " + std::to_string(facts.job) + ": " + problem);
}

void name_task(spank_t handle) {
  if (!agent.running()) return;
  Packet packet(protocol::kTask);
  packet.set_number("rank", item<uint32_t>(handle, S_TASK_GLOBAL_ID).value_or(0));
  packet.set_number("pid", item<pid_t>(handle, S_TASK_PID).value_or(0));
  agent.tell(packet);
}

namespace {

bool must_restart() { return !facts.restart_dir.empty() && facts.restart_dir != "none"; }

// Becomes icp-proxy, which stands in for the restored processes. Returns only when that failed.
int become_proxy(const std::string& proxy, const std::string& pmi) {
  const int socket = agent.task_socket();
  ::fcntl(socket, F_SETFD, 0);
  const std::string number = std::to_string(socket);
  const char* const argv[] = {"icp-proxy", number.c_str(), pmi.empty() ? nullptr : pmi.c_str(), nullptr};
  const char* const envp[] = {"PATH=/usr/bin:/bin", nullptr};  // nothing of the user's changes what it does
  ::execve(proxy.c_str(), const_cast<char* const*>(argv), const_cast<char* const*>(envp));
  put_line("cannot restart: cannot execute " + proxy + ": " + std::strerror(errno));
  return -1;
}

// The program runs in a child, and this process, which Slurm knows, ends as it does: SIGTERM of Slurm's comes to this
// one alone, so that a version can be taken of a program that knows nothing of it. Returns in the child; in this
// process only when it could not be done.
void become_guard(const std::string& proxy, bool asks) {
  const pid_t child = ::fork();
  if (child <= 0) return;
  const int socket = agent.task_socket();
  protocol::send_packet(socket, Packet(protocol::kGuards).set_number("child", child));
  ::fcntl(socket, F_SETFD, 0);
  const std::string number = std::to_string(socket), of = std::to_string(child);
  const char* const argv[] = {"icp-proxy", number.c_str(), "guard", of.c_str(), asks ? "signals" : nullptr, nullptr};
  const char* const envp[] = {"PATH=/usr/bin:/bin", nullptr};
  ::execve(proxy.c_str(), const_cast<char* const*>(argv), const_cast<char* const*>(envp));
  put_line("cannot execute " + proxy + ": " + std::strerror(errno));
  ::kill(child, SIGKILL);
  ::_exit(1);
}

// What the agent, with its user's rights, cannot see before the exec: the process still counts as root's then.
void describe_stream(Packet& ready, const std::string& name, int fd) {
  struct stat stream {};
  if (::fstat(fd, &stream) != 0) return;
  ready.set_number("dev" + name, static_cast<int64_t>(stream.st_dev));
  ready.set_number("ino" + name, static_cast<int64_t>(stream.st_ino));
  ready.set_number("mode" + name, stream.st_mode);
  ready.set_number("rdev" + name, static_cast<int64_t>(stream.st_rdev));
}

// The program is not to have what a version cannot hold. Said once where the user did not ask for it: it costs.
void choose_transports(spank_t handle, bool first) {
  const auto variables = mpi_variables(mpi, has_kernel_bypass("/sys/class"),
                                       [&](const std::string& name) { return !job_env(handle, name.c_str()).empty(); });
  std::string names;
  for (const auto& [name, value] : variables) {
    if (spank_setenv(handle, name.c_str(), value.c_str(), 1) != ESPANK_SUCCESS) continue;
    names += (names.empty() ? "" : ", ") + name + "=" + value;
  }
  if (first && mpi != "tcp" && !names.empty())
    put_line("this node has RDMA devices, which no checkpoint can hold: MPI is told to use TCP (" + names +
             "); --checkpoint-mpi=off leaves it alone");
}

}  // namespace

int start_task(spank_t handle) {
  if (!denied.empty()) {
    if (item<uint32_t>(handle, S_TASK_GLOBAL_ID).value_or(0) == 0) put_line("the job cannot run: " + denied);
    return -1;
  }
  if (!served) return 0;
  const uint32_t rank = item<uint32_t>(handle, S_TASK_GLOBAL_ID).value_or(0);
  Packet answer;
  if (problem.empty()) {
    Packet ready(protocol::kReady);
    char* const here = ::getcwd(nullptr, 0);
    ready.set("cwd", here == nullptr ? "/" : here);
    std::free(here);
    ready.set_number("rank", rank).set_number("pid", ::getpid());
    const std::string pmi = job_env(handle, "PMI_FD");  // set by srun's --mpi plugins
    if (!pmi.empty()) ready.set("pmi", pmi);
    for (int fd = 0; fd < 3; fd++) describe_stream(ready, std::to_string(fd), fd);
    if (const int fd = std::atoi(pmi.c_str()); fd > 2) describe_stream(ready, "pmi", fd);
    describe_pmix(handle, ready);
    answer = agent.announce(ready, kAnswerTimeout);
    if (answer.type == protocol::kRun) {
      if (const std::string text = answer.get("text"); !text.empty()) put_line(text);
      start_launcher(handle, answer);
      use_pmi_relay(pmi, answer);
      use_pmix_relay(handle, answer);
      if (asked) choose_transports(handle, rank == 0);
      if (const std::string guard = answer.get("guard"); !guard.empty())
        become_guard(guard, !answer.get("guard_asks").empty());
      return 0;
    }
    if (answer.type == protocol::kRestart) {
      start_launcher(handle, answer);
      return become_proxy(answer.get("proxy"), pmi);
    }
    if (answer.type == protocol::kFail) {
      if (rank == 0) put_line(answer.get("text"));
      return -1;
    }
  }
  const std::string why = problem.empty() ? "icpstepd does not answer" : problem;
  if (must_restart()) {
    if (rank == 0) put_line("cannot restart: " + why);
    return -1;
  }
  if (rank == 0 && asked) put_line("no checkpoints of this step: " + why + "; the job runs on without");
  return 0;
}

void end_task(spank_t handle) {
  if (!agent.running()) return;
  Packet packet(protocol::kTaskExit);
  packet.set_number("rank", item<uint32_t>(handle, S_TASK_GLOBAL_ID).value_or(0));
  packet.set_number("status", item<int>(handle, S_TASK_EXIT_STATUS).value_or(0));
  agent.tell(packet);
}

void end_step() {
  if (!agent.finish(kGoodbyeTimeout)) slurm_info("spank_icp: icpstepd is still busy with job %u", facts.job);
}

}  // namespace icp::spank
