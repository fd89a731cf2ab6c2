// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/stopped_tree.h"

#include <signal.h>

#include <algorithm>
#include <map>

#include "engine/base/error.h"
#include "engine/process/rseq.h"
#include "engine/process/seccomp.h"
#include "engine/process/thread_check.h"
#include "engine/trace/return_frame.h"
#include "engine/trace/seccomp_book.h"

namespace icp {
namespace {

bool read_process(pid_t pid, ProcessRef& ref) {
  try {
    const ProcStat stat = ProcStat::read(pid);
    const ProcStatus status = ProcStatus::read(pid);
    if (stat.state == 'X') return false;
    ref.pid = pid;
    ref.vpid = status.ns_tgid.empty() ? pid : status.ns_tgid.back();
    ref.start_time = stat.start_time_ticks;
    ref.comm = stat.comm;
    ref.zombie = stat.state == 'Z' && stat.threads <= 1;  // else its main thread alone has ended
    ref.ppid = stat.ppid;
    return true;
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kGone) return false;
    throw;
  }
}

void add_with_descendants(pid_t pid, std::set<pid_t>& seen, std::vector<ProcessRef>& found) {
  ProcessRef ref;
  if (!seen.insert(pid).second || !read_process(pid, ref)) return;
  found.push_back(ref);
  if (ref.zombie) return;
  try {
    for (const pid_t child : read_children(pid)) add_with_descendants(child, seen, found);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kGone) throw;
  }
}

// Nothing can be called in a process without its main thread. It may also be a process that is ending this moment.
void refuse_ended_leader(const ProcessRef& ref) {
  ProcessRef now;
  if (read_process(ref.pid, now) && now.start_time == ref.start_time && !now.zombie)
    throw_error(ErrorKind::kBusy,
                "process {} ({}): its main thread has ended while others run; let main() wait for them", ref.pid,
                ref.comm);
}

// Seizes and interrupts the threads that are not held yet. Returns whether there were any.
bool seize_new_threads(StoppedProcess& process) {
  const pid_t pid = process.ref.pid;
  std::set<pid_t> held;
  for (const Tracee& thread : process.threads) held.insert(thread.tid());
  bool found_new = false;
  for (const pid_t tid : list_proc_numbers(pid, "task")) {
    if (held.contains(tid)) continue;
    try {
      process.threads.push_back(Tracee::seize(tid));
      process.threads.back().interrupt();
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kGone && tid != pid) continue;  // a thread that has just ended
      if (error.kind() == ErrorKind::kGone) refuse_ended_leader(process.ref);
      throw;
    }
    found_new = true;
  }
  return found_new;
}

// Waits until all threads have stopped; those that end instead are left out.
void await_threads(StoppedProcess& process) {
  const pid_t pid = process.ref.pid;
  for (Tracee& thread : process.threads) {
    if (thread.stopped()) continue;
    const bool leader = thread.tid() == pid;
    try {
      thread.wait_stopped();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone || leader) throw;
    }
  }
  std::erase_if(process.threads, [](const Tracee& thread) { return thread.tid() == 0; });
}

// All threads are seized and interrupted. A running thread may have made another behind our back, a stopped one cannot:
// looks again until no pass finds a new one.
void finish_stop(StoppedProcess& process) {
  const pid_t pid = process.ref.pid;
  do {
    await_threads(process);
    process.stat = ProcStat::read(pid);
    if (process.stat.start_time_ticks != process.ref.start_time)
      throw_error(ErrorKind::kGone, "process {} has ended", pid);
  } while (process.stat.threads != process.threads.size() && seize_new_threads(process));
  const auto leader = std::find_if(process.threads.begin(), process.threads.end(),
                                   [pid](const Tracee& thread) { return thread.tid() == pid; });
  if (leader == process.threads.end()) throw_error(ErrorKind::kGone, "process {} has ended", pid);
  std::rotate(process.threads.begin(), leader, leader + 1);
}

// Notes what the threads were doing: all of them, or none.
void note_starts(StoppedProcess& process, InterruptedCalls& calls) {
  std::vector<ThreadStart> starts;
  TimeoutPlaces places(process.ref.pid);
  for (Tracee& thread : process.threads) {
    ThreadStart& start = starts.emplace_back();
    if (thread.job_stopped()) process.job_stopped = thread.stop_signal();
    start.signal_mask = thread.signal_mask();
    start.live = thread.regs();
    find_rseq(thread, process.ref.pid, start);
    leave_rseq_section(process.ref.pid, start);
    start.partial = continue_partial_call(process.ref.pid, thread.tid(), start.live);
    tell_interrupted_call(thread.tid(), calls);
    start.time_left_ns = calls.normalise(thread.tid(), places, start.live, start.image);
    if (const SeccompChain* chain = seccomp_book().find(thread.tid(), process.ref.start_time))
      avoid_restart_call(*chain, places, start);
  }
  process.starts = std::move(starts);
}

void prepare_calls(StoppedProcess& process) {
  const pid_t pid = process.ref.pid;
  process.status = ProcStatus::read(pid);
  note_thread_states(process);
  process.maps = MapsEntry::read(pid);
  const CallStubs stubs = install_call_stubs(pid, process.maps);
  process.calls_protected = stubs.single.value != 0;
  // Nothing of that is in the vdso of a restored process.
  for (const ThreadStart& start : process.starts) {
    if (stubs.contain({start.live.rip}))
      throw_error(ErrorKind::kBusy, "process {} ({}) has not gone on yet since a version that was broken off", pid,
                  process.ref.comm);
  }
  const RemoteAddr instruction = process.calls_protected ? stubs.single : find_syscall_instruction(pid);
  process.remote = std::make_unique<RemoteProcess>(process.threads[0], pid, instruction, stubs.batch);
  if (process.calls_protected) process.remote->protect_calls(process.starts[0].image, process.starts[0].signal_mask);
}

// Threads that may not have stopped yet, with registers still their own. The leader last, as in resume_process().
void release_partly_held(StoppedProcess& process) noexcept {
  process.remote.reset();
  while (process.threads.size() > 1) process.threads.pop_back();
  const bool ended = process.threads.empty() || process.threads[0].tid() == 0;
  ProcessRef now;
  if (!ended && (!read_process(process.ref.pid, now) || now.zombie)) process.threads[0].forget_ended();
  process.threads.clear();
}

// Groups of processes such that a parent is in an earlier group than its children. A process in vfork() cannot be
// stopped before its child has called exec or ended: had the child been stopped first, neither would ever come to it.
std::vector<std::vector<const ProcessRef*>> generations(const std::vector<ProcessRef>& refs) {
  std::map<pid_t, size_t> depths;
  std::vector<std::vector<const ProcessRef*>> groups;
  for (const ProcessRef& ref : refs) {
    const auto parent = depths.find(ref.ppid);
    const size_t depth = parent == depths.end() ? 0 : parent->second + 1;
    depths.emplace(ref.pid, depth);
    groups.resize(std::max(groups.size(), depth + 1));
    groups[depth].push_back(&ref);
  }
  return groups;
}

}  // namespace

std::vector<ProcessRef> find_processes(const std::vector<pid_t>& roots) {
  std::set<pid_t> seen;
  std::vector<ProcessRef> found;
  for (const pid_t root : roots) add_with_descendants(root, seen, found);
  return found;
}

StoppedProcess stop_process(const ProcessRef& ref, InterruptedCalls& calls, bool passing) {
  StoppedProcess process;
  process.ref = ref;
  if (ref.zombie) return process;
  try {
    seize_new_threads(process);
    finish_stop(process);
    note_starts(process, calls);
    if (!passing) prepare_calls(process);
  } catch (...) {
    release_partly_held(process);
    throw;
  }
  return process;
}

namespace {

// A thread in whose calls the agent has lost patience. True when it has found its way back by itself meanwhile.
bool stop_late(const StoppedProcess& process, Tracee& thread) {
  thread.interrupt();
  thread.wait_stopped();
  const uint64_t at = thread.regs().rip, stub = process.remote ? process.remote->batch_stub().value : 0;
  return at < stub || at >= stub + kBatchStub.size();
}

}  // namespace

void settle_thread(StoppedProcess& process, size_t index) {
  Tracee& thread = process.threads[index];
  if (thread.settled()) return;
  if (!thread.stopped() && stop_late(process, thread)) return thread.set_settled();
  if (thread.in_call()) thread.restop();
  // In this order: should the agent die in between, the way back of the call sets the mask once more.
  thread.set_signal_mask(process.starts[index].signal_mask);
  thread.set_regs(process.starts[index].live);
  thread.set_settled();
}

void end_calls(StoppedProcess& process) {
  settle_thread(process, 0);
  process.remote->give_back();
}

void resume_process(StoppedProcess& process) noexcept {
  // In this order: with the registers of a call it would not find back without what that has borrowed.
  try {
    if (!process.threads.empty() && !process.starts.empty()) settle_thread(process, 0);
  } catch (const std::exception&) {
    // It has been killed, as is found below.
  }
  process.remote.reset();
  // The leader last: if the process was killed while it was stopped, its end reaches its parent only when we, the
  // tracer, have waited for all other threads and then for the leader.
  while (!process.threads.empty()) {
    Tracee& thread = process.threads.back();
    const size_t index = process.threads.size() - 1;
    try {
      if (thread.tid() != 0 && index < process.starts.size()) settle_thread(process, index);
      thread.detach();
    } catch (const std::exception&) {
      if (thread.stopped()) thread.forget_ended();  // else the destructor lets it go as soon as it can
    }
    process.threads.pop_back();
  }
}

StoppedTree::StoppedTree(const std::vector<ProcessRef>& found, const std::function<std::vector<pid_t>()>& more_roots,
                         InterruptedCalls& calls, bool passing) {
  try {
    stop_all(found, more_roots, [&](StoppedProcess& process) {
      note_starts(process, calls);
      if (!passing) prepare_calls(process);
    });
  } catch (...) {
    for (StoppedProcess& process : processes_)
      if (process.starts.empty()) release_partly_held(process);
    resume();
    throw;
  }
}

StoppedTree::StoppedTree(const std::vector<pid_t>& roots, InterruptedCalls& calls)
    : StoppedTree(
          find_processes(roots), [roots] { return roots; }, calls) {}

StoppedTree::~StoppedTree() { resume(); }

void StoppedTree::stop_all(std::vector<ProcessRef> found, const std::function<std::vector<pid_t>()>& more_roots,
                           const std::function<void(StoppedProcess&)>& note) {
  for (bool lost = true; lost || !found.empty();) {
    lost = !hold(found);
    found = find_new(more_roots ? more_roots() : std::vector<pid_t>());
    if (found.empty() && !lost) {
      lost = !each_held(0, [&](StoppedProcess& process) {
        if (process.starts.empty()) note(process);
      });
    }
  }
  // A zombie found early may have been waited for before its parent was stopped.
  std::erase_if(processes_, [](const StoppedProcess& process) {
    ProcessRef now;
    return process.ref.zombie && !(read_process(process.ref.pid, now) && now.start_time == process.ref.start_time);
  });
}

// Works on the processes from `first` on. One that ends meanwhile is let go and not held any more: should it be a
// zombie now, it is found again as such. False if there was any.
bool StoppedTree::each_held(size_t first, const std::function<void(StoppedProcess&)>& work) {
  bool all = true;
  for (size_t i = first; i < processes_.size();) {
    StoppedProcess& process = processes_[i];
    try {
      if (!process.ref.zombie) work(process);
      ++i;
    } catch (const Error& error) {
      release_partly_held(process);
      if (error.kind() != ErrorKind::kGone) throw;
      held_.erase(process.ref.pid);
      processes_.erase(processes_.begin() + static_cast<ptrdiff_t>(i));
      all = false;
    }
  }
  return all;
}

// Stops these: all of a generation are on their way before the first one is waited for. False if some ended meanwhile.
bool StoppedTree::hold(const std::vector<ProcessRef>& refs) {
  bool all = true;
  for (const std::vector<const ProcessRef*>& group : generations(refs)) {
    const size_t first = processes_.size();
    for (const ProcessRef* ref : group) {
      if (!held_.insert(ref->pid).second) continue;
      processes_.emplace_back();
      processes_.back().ref = *ref;
    }
    all = each_held(first, [](StoppedProcess& process) { seize_new_threads(process); }) && all;
    all = each_held(first, [](StoppedProcess& process) { finish_stop(process); }) && all;
  }
  return all;
}

// Processes that are not held: below these roots, and children of those held.
std::vector<ProcessRef> StoppedTree::find_new(const std::vector<pid_t>& roots) const {
  std::set<pid_t> seen = held_;
  std::vector<ProcessRef> found;
  for (const pid_t root : roots) add_with_descendants(root, seen, found);
  for (const StoppedProcess& process : processes_) {
    for (const Tracee& thread : process.threads) {
      for (const pid_t child : read_children_of_thread(process.ref.pid, thread.tid()))
        add_with_descendants(child, seen, found);
    }
  }
  return found;
}

void StoppedTree::resume() noexcept {
  for (StoppedProcess& process : processes_) resume_process(process);
  processes_.clear();
}

void StoppedTree::kill() noexcept {
  for (StoppedProcess& process : processes_)
    if (!process.ref.zombie) ::kill(process.ref.pid, SIGKILL);
  for (StoppedProcess& process : processes_) {
    process.remote.reset();
    // The leader's end is reported only when all other threads have been waited for.
    for (auto thread = process.threads.rbegin(); thread != process.threads.rend(); ++thread) thread->forget_ended();
  }
  processes_.clear();
}

}  // namespace icp
