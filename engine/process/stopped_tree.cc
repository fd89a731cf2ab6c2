// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/stopped_tree.h"

#include <signal.h>

#include <algorithm>
#include <set>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/process/rseq.h"

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
    ref.zombie = stat.state == 'Z';
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

pid_t capsule_tid(pid_t pid, pid_t tid) {
  const ProcStatus status = ProcStatus::parse(read_proc(pid, fmt::format("task/{}/status", tid)));
  return status.ns_pid.empty() ? tid : status.ns_pid.back();
}

// Seizes and interrupts threads until a pass over the thread list finds no new one: a running thread may make another
// behind our back, a stopped one cannot.
void seize_all_threads(StoppedProcess& process) {
  const pid_t pid = process.ref.pid;
  std::set<pid_t> held;
  for (bool found_new = true; found_new;) {
    found_new = false;
    const size_t first_new = process.threads.size();
    for (const pid_t tid : list_proc_numbers(pid, "task")) {
      if (held.contains(tid)) continue;
      try {
        process.threads.push_back(Tracee::seize(tid));
        process.threads.back().interrupt();
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::kGone && tid != pid) continue;  // a thread that has just ended
        throw;
      }
      held.insert(tid);
      found_new = true;
    }
    for (size_t i = first_new; i < process.threads.size(); ++i) {
      try {
        process.threads[i].wait_stopped();
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kGone || i == 0) throw;
      }
    }
    std::erase_if(process.threads, [](const Tracee& thread) { return thread.tid() == 0; });
  }
  const auto leader = std::find_if(process.threads.begin(), process.threads.end(),
                                   [pid](const Tracee& thread) { return thread.tid() == pid; });
  if (leader == process.threads.end()) throw_error(ErrorKind::kGone, "process {} has ended", pid);
  std::rotate(process.threads.begin(), leader, leader + 1);
}

void note_start(Tracee& thread, TimeoutPlaces& places, InterruptedCalls& calls, ThreadStart& start) {
  start.signal_mask = thread.signal_mask();
  start.live = thread.regs();
  find_rseq(thread, places.pid(), start);
  leave_rseq_section(places.pid(), start);
  calls.normalise(thread.tid(), places, start.live, start.image);
}

// Seizes and stops all threads and notes what they were doing.
void hold_process(StoppedProcess& process, InterruptedCalls& calls) {
  const pid_t pid = process.ref.pid;
  seize_all_threads(process);
  if (ProcStat::read(pid).start_time_ticks != process.ref.start_time)
    throw_error(ErrorKind::kGone, "process {} has ended", pid);
  const RemoteAddr stub = install_return_stub(pid);
  TimeoutPlaces places(pid, stub);
  process.starts.resize(process.threads.size());
  for (size_t i = 0; i < process.threads.size(); ++i) {
    process.vtids.push_back(capsule_tid(pid, process.threads[i].tid()));
    process.job_stopped = process.job_stopped || process.threads[i].job_stopped();
    note_start(process.threads[i], places, calls, process.starts[i]);
  }
  process.remote =
      std::make_unique<RemoteProcess>(process.threads[0], pid, stub.value != 0 ? stub : find_syscall_instruction(pid));
  process.calls_protected = stub.value != 0;
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

}  // namespace

std::vector<ProcessRef> find_processes(const std::vector<pid_t>& roots) {
  std::set<pid_t> seen;
  std::vector<ProcessRef> found;
  for (const pid_t root : roots) add_with_descendants(root, seen, found);
  return found;
}

StoppedProcess stop_process(const ProcessRef& ref, InterruptedCalls& calls) {
  StoppedProcess process;
  process.ref = ref;
  if (ref.zombie) return process;
  try {
    hold_process(process, calls);
  } catch (...) {
    release_partly_held(process);
    throw;
  }
  return process;
}

void settle_thread(StoppedProcess& process, size_t index) {
  Tracee& thread = process.threads[index];
  if (thread.made_calls()) thread.restop();
  thread.forget_calls();
  thread.set_regs(process.starts[index].live);
  thread.set_signal_mask(process.starts[index].signal_mask);
}

void resume_process(StoppedProcess& process) noexcept {
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
      thread.forget_ended();
    }
    process.threads.pop_back();
  }
}

StoppedTree::StoppedTree(const std::vector<pid_t>& roots, InterruptedCalls& calls) {
  std::set<pid_t> held;
  try {
    for (bool found_new = true; found_new;) {
      found_new = false;
      for (const ProcessRef& ref : find_processes(roots)) {
        if (!held.insert(ref.pid).second) continue;
        found_new = true;
        try {
          processes_.push_back(stop_process(ref, calls));
        } catch (const Error& error) {
          if (error.kind() != ErrorKind::kGone) throw;
          held.erase(ref.pid);  // it ended; if it is a zombie by now, the next pass takes it as one
        }
      }
    }
    // A zombie found early may have been waited for before its parent was stopped.
    std::erase_if(processes_, [](const StoppedProcess& process) {
      ProcessRef now;
      return process.ref.zombie && !(read_process(process.ref.pid, now) && now.start_time == process.ref.start_time);
    });
  } catch (...) {
    resume();
    throw;
  }
}

StoppedTree::~StoppedTree() { resume(); }

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
