// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/process_state.h"

#include <sys/syscall.h>
#include <sys/wait.h>

#include <chrono>
#include <deque>
#include <exception>
#include <map>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/memory/memory_protection.h"
#include "engine/process/amx_tiles.h"
#include "engine/process/attributes.h"
#include "engine/process/controls.h"
#include "engine/process/credentials.h"
#include "engine/process/keyrings.h"
#include "engine/process/limits.h"
#include "engine/process/memory_settings.h"
#include "engine/process/numa_mappings.h"
#include "engine/process/signals.h"
#include "engine/process/thread.h"
#include "engine/process/thread_own.h"
#include "engine/process/timers.h"
#include "engine/trace/call_batch.h"

namespace icp {
namespace {

constexpr uint64_t kUserCode64 = 0x33;  // __USER_CS: 64-bit code
constexpr size_t kMostArguments = 64;   // shown by icp show; the real ones are in memory

// Leaves it for the parent to find.
constexpr uint64_t kLookForContinued = WCONTINUED | WNOHANG | WNOWAIT | static_cast<uint64_t>(__WALL);

void capture_arguments(pid_t pid, pb::Process& state) {
  const std::string text = read_proc(pid, "cmdline");
  for (size_t begin = 0; begin < text.size() && state.argv_size() < static_cast<int>(kMostArguments);) {
    const size_t end = std::min(text.find('\0', begin), text.size());
    state.add_argv(text.substr(begin, end - begin));
    begin = end + 1;
  }
}

template <typename Infos>
uint64_t signals_of(const Infos& infos) {
  uint64_t mask = 0;
  for (const std::string& bytes : infos) {
    siginfo_t info;
    std::memcpy(&info, bytes.data(), sizeof info);
    mask |= 1ull << (info.si_signo - 1);
  }
  return mask;
}

// One thread and what is to be called in it.
class ThreadCapture {
 public:
  ThreadCapture(StoppedProcess& process, size_t index, const KeyList& keys, pb::Process& state,
                BorrowedRanges& borrowed)
      : process_(process),
        index_(index),
        state_(state),
        thread_(*state.add_threads()),
        borrowed_(borrowed),
        end_(std::chrono::steady_clock::now() + Tracee::kLongestStop) {
    capture_thread(process, index, calls_, state, thread_);
    ask_keyrings(process, index, keys, calls_);
    if (index > 0) {
      capture_death_signal(calls_, state, thread_);
      return;
    }
    capture_attributes(process, calls_, state);
    capture_process_controls(process.ref.pid, calls_, state);
    capture_memory_settings(process, calls_, state);
    capture_protection_keys(process, calls_, state);
    capture_numa_mappings(process, calls_);
    capture_limits(process, calls_, state);
    capture_signals(process, calls_, state);
    capture_timers(process, calls_, state);
    capture_tile_permission(calls_, state);
    calls_.call("brk", SYS_brk, {0},
                [&state](int64_t end) { state.mutable_memory()->set_brk(static_cast<uint64_t>(end)); });
  }

  // For the main thread of a stopped child's parent.
  void ask_whether_told(const StoppedProcess& child, pb::Process& child_state) {
    calls_.ask<siginfo_t>(nullptr, SYS_waitid,
                          {P_PID, static_cast<uint64_t>(child.ref.vpid), CallBatch::kAnswer,
                           WSTOPPED | WNOHANG | WNOWAIT | static_cast<uint64_t>(__WALL), 0},
                          [&child_state](const siginfo_t& info) { child_state.set_stop_told(info.si_pid == 0); });
  }
  // For that of a running child's parent: whether any of its children has been continued and it has not been told.
  void ask_for_continued(bool& any) {
    calls_.ask<siginfo_t>(nullptr, SYS_waitid, {P_ALL, 0, CallBatch::kAnswer, kLookForContinued, 0},
                          [&any](const siginfo_t& info) { any = info.si_pid != 0; });
  }

  void start() {
    const uint64_t pending = signals_of(state_.signals().pending()) | signals_of(thread_.pending());
    const int signal = find_quiet_signal(process_.status, pending);
    const ThreadStart& start = process_.starts[index_];
    const CallBatch::WayBack back{start.image, start.signal_mask, std::as_bytes(std::span(thread_.xstate()))};
    started_ = signal != 0 && calls_.start(process_.threads[index_], process_.ref.pid, process_.remote->batch_stub(),
                                           back, process_.ref.vpid, signal, borrowed_);
  }
  void finish() {
    if (started_) calls_.finish(end_);
  }
  void run_singly() {
    if (started_) return;
    if (index_ == 0) {
      calls_.run_singly(*process_.remote);
      end_calls(process_);
      return;
    }
    RemoteProcess remote = process_.remote->on_thread(process_.threads[index_]);
    const ThreadStart& start = process_.starts[index_];
    if (process_.calls_protected) remote.protect_calls(start.image, start.signal_mask);
    calls_.run_singly(remote);
    settle_thread(process_, index_);  // before what it has borrowed is given back
  }
  void settle() { settle_thread(process_, index_); }
  void deliver() {
    calls_.deliver(process_.ref.pid);
    thread_.set_tid(static_cast<uint32_t>(calls_.tid()));
  }

 private:
  StoppedProcess& process_;
  size_t index_;
  pb::Process& state_;
  pb::Thread& thread_;
  BorrowedRanges& borrowed_;
  CallBatch calls_;
  bool started_ = false;
  std::chrono::steady_clock::time_point end_;  // of all waits, which are one
};

// Whatever goes wrong with one, no other may be left running.
void run_all(std::deque<ThreadCapture>& threads) {
  std::exception_ptr failure;
  std::vector<bool> failed(threads.size());
  const auto each = [&](void (ThreadCapture::*step)()) {
    for (size_t i = 0; i < threads.size(); ++i) {
      if (failed[i]) continue;
      try {
        (threads[i].*step)();
      } catch (...) {
        failed[i] = true;
        if (!failure) failure = std::current_exception();
      }
    }
  };
  each(&ThreadCapture::start);
  each(&ThreadCapture::finish);
  if (!failure) each(&ThreadCapture::run_singly);
  failed.assign(threads.size(), false);
  each(&ThreadCapture::settle);
  if (failure) std::rethrow_exception(failure);
}

void check_code(const StoppedProcess& process) {
  for (const ThreadStart& start : process.starts) {
    if (start.live.cs != kUserCode64)
      throw_error(ErrorKind::kRefused, "process {} ({}) runs 32-bit code; use a 64-bit build of it", process.ref.pid,
                  process.ref.comm);
  }
}

// The parents, by number, of children that have been continued by SIGCONT and have not been waited for as such.
std::map<pid_t, bool> capture_threads(std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states) {
  const KeyList keys = KeyList::read();
  std::map<pid_t, bool> continued;
  std::deque<BorrowedRanges> borrowed(processes.size());
  std::deque<ThreadCapture> threads;
  std::map<pid_t, ThreadCapture*> leaders;
  for (size_t i = 0; i < processes.size(); ++i) {
    StoppedProcess& process = processes[i];
    if (!process.remote) continue;
    check_code(process);
    if (process.job_stopped != 0) {
      states[i]->set_state(pb::Process::STOPPED);
      states[i]->set_stop_signal(process.job_stopped);
    }
    capture_arguments(process.ref.pid, *states[i]);
    capture_credentials(process.status, *states[i]);
    for (size_t thread = 0; thread < process.threads.size(); ++thread)
      threads.emplace_back(process, thread, keys, *states[i], borrowed[i]);
    leaders[process.ref.pid] = &threads[threads.size() - process.threads.size()];
  }
  for (size_t i = 0; i < processes.size(); ++i) {
    const auto parent = leaders.find(processes[i].ref.ppid);
    if (parent == leaders.end() || !processes[i].remote) continue;
    if (processes[i].job_stopped != 0)
      parent->second->ask_whether_told(processes[i], *states[i]);
    else if (const auto [asked, added] = continued.try_emplace(parent->first); added)
      parent->second->ask_for_continued(asked->second);
  }
  capture_shared_directories(processes, states);
  run_all(threads);
  for (ThreadCapture& thread : threads) thread.deliver();
  return continued;
}

// Few ever are: their children are asked for one by one, when nothing is borrowed any more.
void find_continued(StoppedProcess& parent, std::vector<StoppedProcess>& processes,
                    const std::vector<pb::Process*>& states) {
  CallBatch calls;
  for (size_t i = 0; i < processes.size(); ++i) {
    const StoppedProcess& child = processes[i];
    if (!child.remote || child.ref.ppid != parent.ref.pid || child.job_stopped != 0) continue;
    calls.ask<siginfo_t>(nullptr, SYS_waitid,
                         {P_PID, static_cast<uint64_t>(child.ref.vpid), CallBatch::kAnswer, kLookForContinued, 0},
                         [state = states[i]](const siginfo_t& info) { state->set_continue_untold(info.si_pid != 0); });
  }
  calls.run_singly(*parent.remote);
  end_calls(parent);
  calls.deliver(parent.ref.pid);
}

}  // namespace

void capture_process_state(std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states) {
  const std::map<pid_t, bool> continued = capture_threads(processes, states);
  for (StoppedProcess& process : processes) {
    const auto found = continued.find(process.ref.pid);
    if (found != continued.end() && found->second) find_continued(process, processes, states);
  }
  for (size_t i = 0; i < processes.size(); ++i) {
    if (processes[i].remote) {
      name_timer_threads(processes[i], *states[i]);
      capture_own(processes[i], *states[i]);
    }
  }
}

}  // namespace icp
