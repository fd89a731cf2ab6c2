// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/restore/tree_builder.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/socket_pair.h"
#include "engine/broker/broker.h"

namespace icp {
namespace {

constexpr size_t kScratchBytes = 256 << 10;
constexpr int kProcessSocketFd = 4;  // carries descriptors; moved out of the way in every process
constexpr int kInitTimeoutMs = 30'000;
constexpr size_t kNameBytes = 16;  // TASK_COMM_LEN of linux/sched.h

}  // namespace

TreeBuilder::TreeBuilder(const std::string& init_path, pid_t like, const Identity& identity, bool own_terminals) {
  try {
    start_init(init_path, like, identity, own_terminals);
  } catch (...) {
    this->~TreeBuilder();
    init_pid_ = 0;
    throw;
  }
}

TreeBuilder::~TreeBuilder() {
  if (init_pid_ == 0) return;
  // The end of its init ends every process of a pid namespace.
  ::kill(init_pid_, SIGKILL);
  for (auto& [pid, seed] : seeds_)
    if (seed.leader) seed.leader->forget_ended();
  if (init_.leader) init_.leader->forget_ended();
  int status = 0;
  while (::waitpid(init_pid_, &status, __WALL) < 0 && errno == EINTR) {
  }
  init_pid_ = 0;
}

void TreeBuilder::start_init(const std::string& path, pid_t like, const Identity& identity, bool own_terminals) {
  SocketPair channel(SOCK_STREAM), descriptors(SOCK_STREAM);
  init_pid_ = broker().start_init(path, channel.there.get(), descriptors.there.get(), like, identity, own_terminals);
  channel.there.reset();
  descriptors.there.reset();

  pollfd wait{channel.here.get(), POLLIN, 0};
  std::array<char, 256> answer{};
  if (::poll(&wait, 1, kInitTimeoutMs) != 1 || ::recv(channel.here.get(), answer.data(), answer.size() - 1, 0) <= 0)
    throw_error(ErrorKind::kSystem, "{} did not start", path);
  if (answer[0] == 'E') {
    int number = 0;
    char what[200] = "";
    std::sscanf(answer.data(), "E%d %199[^\n]", &number, what);
    throw Error(ErrorKind::kSystem, fmt::format("{} cannot {}: {}", path, what, errno_text(number)), number);
  }
  init_channel_ = std::move(channel.here);
  agent_socket_ = std::move(descriptors.here);

  init_.pid = init_pid_;
  init_.leader = std::make_unique<Tracee>(Tracee::seize(init_pid_, true));
  init_.leader->interrupt();
  init_.leader->wait_stopped();
  init_regs_ = init_.leader->regs();
  init_mask_ = init_.leader->signal_mask();
  init_.leader->set_signal_mask(~0ull);
  init_.remote = std::make_unique<RemoteProcess>(*init_.leader, init_pid_, find_syscall_instruction(init_pid_));
  init_.remote->map_scratch(kScratchBytes);
  process_socket_ = kProcessSocketFd;
}

UniqueFd TreeBuilder::root() const {
  UniqueFd fd(::open(fmt::format("/proc/{}/root", init_pid_).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fd) throw_errno("cannot open the root directory of the capsule");
  return fd;
}

pid_t TreeBuilder::clone_with_pid(RemoteProcess& by, uint64_t flags, uint32_t pid, int exit_signal) {
  by.reset_scratch();
  const RemoteAddr number = by.stage_value(static_cast<pid_t>(pid));
  clone_args arguments{};
  arguments.flags = flags;
  arguments.exit_signal = static_cast<uint64_t>(exit_signal);
  arguments.set_tid = number.value;
  arguments.set_tid_size = 1;
  const RemoteAddr at = by.stage_value(arguments);
  by.call(fmt::format("clone3 of number {}", pid).c_str(), SYS_clone3, {at.value, sizeof arguments});
  return by.last_child();
}

// CLONE_* of what the process shares with the one that forks it.
uint64_t TreeBuilder::shared_flags(const TreeStep& step, const pb::Process* process) {
  if (process == nullptr) return 0;
  for (const uint32_t of : {process->files_of(), process->fs_of()}) {
    if (of != 0 && (of != step.by || step.kind != TreeStep::kFork))
      throw_error(ErrorKind::kImage, "process {} shares something with process {}, which is not its parent",
                  process->pid(), of);
  }
  return (process->files_of() != 0 ? CLONE_FILES : 0u) | (process->fs_of() != 0 ? CLONE_FS : 0u);
}

void TreeBuilder::fork_seed(const TreeStep& step, int exit_signal, const pb::Process* process) {
  Seed& by = step.by == 1 ? init_ : seeds_.at(step.by);
  const bool sibling = step.kind == TreeStep::kForkSibling;
  const uint64_t flags = shared_flags(step, process) | (sibling ? CLONE_PARENT : 0u);
  const int signal = step.kind == TreeStep::kForkHelper && step.by != 1 ? step.exit_signal : exit_signal;
  Seed seed;
  // With CLONE_PARENT the kernel takes the exit signal of the caller and refuses another.
  seed.pid = clone_with_pid(*by.remote, flags, step.pid, sibling ? 0 : signal);
  seed.leader = std::make_unique<Tracee>(Tracee::adopt(seed.pid));
  seed.leader->set_signal_mask(~0ull);
  // Same memory as its parent's, so the same instruction and scratch serve.
  seed.remote = std::make_unique<RemoteProcess>(by.remote->on_process(*seed.leader, seed.pid));
  seeds_.emplace(step.pid, std::move(seed));
}

void TreeBuilder::build(const pb::Capsule& capsule, const std::vector<TreeStep>& steps, const Made& made,
                        const std::function<void(uint32_t)>& new_session) {
  made(1, *init_.remote);
  std::map<uint32_t, const pb::Process*> processes;
  for (const pb::Process& process : capsule.processes()) processes[process.pid()] = &process;
  for (const TreeStep& step : steps) {
    switch (step.kind) {
      case TreeStep::kFork:
      case TreeStep::kForkSibling:
      case TreeStep::kForkHelper: {
        const auto found = processes.find(step.pid);
        const pb::Process* const process = found == processes.end() ? nullptr : found->second;
        const int signal = process == nullptr ? SIGCHLD : process->exit_signal();
        // None at all (clone(2) with 0), but for what init waits for.
        const bool valid = signal >= (step.by == 1 ? 1 : 0) && signal <= 64;
        fork_seed(step, valid ? signal : SIGCHLD, process);
        made(step.pid, *seeds_.at(step.pid).remote);
        break;
      }
      case TreeStep::kSetsid:
        seeds_.at(step.pid).remote->call("setsid", SYS_setsid);
        new_session(step.pid);
        break;
      case TreeStep::kSetpgid:
        seeds_.at(step.pid).remote->call("setpgid", SYS_setpgid, {0, step.group});
        break;
      case TreeStep::kEndHelper:
        break;  // end_helpers()
    }
  }
}

namespace {

// An ordinary kill would wait behind the mask, so that is opened for this one. SIGKILL ends it where it is.
void end_by_signal(Seed& seed, int signal) {
  if (signal == SIGKILL) {
    ::kill(seed.pid, signal);
    return seed.leader->forget_ended();
  }
  seed.leader->set_signal_mask(~(1ull << (signal - 1)));
  ::kill(seed.pid, signal);
  int stop = 0;
  do {
    stop = seed.leader->resume_and_wait(PTRACE_CONT, signal);
  } while (WIFSTOPPED(stop));
}

// A number from the image: a signal whose default action ends a process.
bool ends_a_process(int signal) {
  constexpr std::array kHarmless{SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH};
  return signal >= 1 && signal <= 64 && std::find(kHarmless.begin(), kHarmless.end(), signal) == kHarmless.end();
}

}  // namespace

void TreeBuilder::end_as_zombie(uint32_t pid, int status, const std::string& name) {
  Seed& seed = seeds_.at(pid);
  if (!name.empty()) {
    seed.remote->reset_scratch();
    const RemoteAddr text = seed.remote->stage_string(name.substr(0, kNameBytes - 1));
    seed.remote->call("prctl(PR_SET_NAME)", SYS_prctl, {PR_SET_NAME, text.value});
  }
  const int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  if (signal != 0) {
    if (!ends_a_process(signal))
      throw_error(ErrorKind::kImage, "process {} was ended by signal {}, which ends none", pid, signal);
    seed.remote->reset_scratch();
    const RemoteAddr no_core = seed.remote->stage_value(rlimit{0, 0});
    seed.remote->call("setrlimit", SYS_prlimit64, {0, RLIMIT_CORE, no_core.value, 0});
    end_by_signal(seed, signal);
  } else {
    try {
      seed.remote->syscall(SYS_exit_group, {static_cast<uint64_t>(WEXITSTATUS(status))});
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
    }
  }
  seeds_.erase(pid);
}

// What this sends to the parent, SIGCHLD, goes with all that it gets while the tree is made (restore_process_signals).
void TreeBuilder::continue_untold(uint32_t pid) {
  Seed& seed = seeds_.at(pid);
  seed.leader->stop_and_continue();
  seed.remote->reset_scratch();
  const RemoteAddr mask = seed.remote->stage_value(1ull << (SIGCONT - 1)),
                   no_time = seed.remote->stage_value(timespec{});
  seed.remote->call("rt_sigtimedwait", SYS_rt_sigtimedwait, {mask.value, 0, no_time.value, sizeof(uint64_t)});
}

void TreeBuilder::end_helpers(const std::vector<TreeStep>& steps) {
  for (const TreeStep& step : steps) {
    if (step.kind != TreeStep::kEndHelper) continue;
    end_as_zombie(step.pid, 0);
    if (step.by == 1) continue;  // init reaps it with the rest
    seeds_.at(step.by).remote->call("wait4 for a helper", SYS_wait4, {step.pid, 0, __WALL, 0});
  }
}

std::unique_ptr<Tracee> TreeBuilder::make_thread(RemoteProcess& process, uint32_t tid) {
  constexpr uint64_t kThreadFlags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  const pid_t made = clone_with_pid(process, kThreadFlags, tid, 0);
  auto thread = std::make_unique<Tracee>(Tracee::adopt(made));
  thread->set_signal_mask(~0ull);
  return thread;
}

UniqueFd TreeBuilder::release() {
  init_.remote->unmap_scratch();
  init_.leader->restop();
  init_.leader->set_regs(init_regs_);
  init_.leader->set_signal_mask(init_mask_);
  init_.leader->detach();
  if (::send(init_channel_.get(), "g", 1, MSG_NOSIGNAL) != 1) throw_errno("cannot start the capsule's init");
  init_pid_ = 0;
  seeds_.clear();
  return std::move(init_channel_);
}

}  // namespace icp
