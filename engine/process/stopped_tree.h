// SPDX-License-Identifier: GPL-2.0-or-later
// The processes of a capsule: finding them, stopping them all, letting them go on.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/base/procfs.h"
#include "engine/process/interrupted_calls.h"
#include "engine/process/partial_calls.h"
#include "engine/trace/remote_process.h"
#include "engine/trace/tracee.h"

namespace icp {

// A process as found in /proc. `pid` is the agent's view, `vpid` the capsule's (its innermost pid namespace).
struct ProcessRef {
  pid_t pid = 0, vpid = 0;
  uint64_t start_time = 0;  // ticks since boot; with pid, the process's identity
  std::string comm;
  bool zombie = false;
  pid_t ppid = 0;  // the agent's view, when it was found
};

// All live descendants of the roots (the roots included), parents before children. Processes that end meanwhile are
// left out.
std::vector<ProcessRef> find_processes(const std::vector<pid_t>& roots);

// What a thread was doing when it was stopped.
struct ThreadStart {
  user_regs_struct live{};  // registers to go on with
  user_regs_struct
      image{};  // registers to save: the same, but for system calls that only the running kernel can resume
  std::optional<uint64_t> time_left_ns;  // of such a call's time-out, when that is in memory
  std::optional<PartialCall> partial;    // for the image: what the thread goes on with in instructions of ours
  uint64_t signal_mask = 0;
  uint64_t rseq = 0;  // address of its struct rseq, 0 when none is registered
  uint32_t rseq_len = 0, rseq_signature = 0;
};

// What a thread does not share with its process's main thread.
struct ThreadOwn {
  std::optional<ProcStatus> status;       // its ids, groups and capabilities
  std::optional<ProcStatus> directories;  // its umask, and it has directories of its own
  size_t maker = 0;                       // the thread, by its place, whose directories they are, if another's
  std::vector<uint32_t> namespaces;       // CLONE_NEW*: of its own
};

// One stopped process: its threads (leader first) and the means to run system calls in it. /proc is read once a stop:
// nothing in these changes until the process goes on (but for what we do to it, and the pending signals).
struct StoppedProcess {
  ProcessRef ref;
  std::vector<Tracee> threads;      // empty for a zombie
  std::vector<ThreadStart> starts;  // one a thread
  std::map<size_t, ThreadOwn> own;  // by place of the thread, for those that have something
  ProcStat stat;                    // of the moment when this process had stopped
  ProcStatus status;                // of the moment when the whole tree had
  std::vector<MapsEntry> maps;
  std::unique_ptr<RemoteProcess> remote;  // calls in the leader; null for a zombie
  int job_stopped = 0;                    // SIGSTOP, SIGTSTP ...; 0: not at all
  bool calls_protected = false;           // the remote calls find back should the agent die (return_frame.h)
};

// Stops one process: seizes all its threads, including those that appear meanwhile. Throws kGone if it ends.
// With `passing`, no calls are to be made in it: it only passes through a stop.
StoppedProcess stop_process(const ProcessRef& ref, InterruptedCalls& calls, bool passing = false);
// Puts registers and signal mask of one thread back; it stays stopped. Done as soon as no more calls are to be made in
// it: should the agent die, the thread then goes on as after any stop.
void settle_thread(StoppedProcess& process, size_t index);
// After calls in the leader: settles it and puts back what they have borrowed of its stack.
void end_calls(StoppedProcess& process);
// Puts registers and signal mask of all threads back and lets them go on (stopped by job control if they were).
// Never throws: a thread that was killed meanwhile is passed over.
void resume_process(StoppedProcess& process) noexcept;

// All processes below some roots, stopped. The destructor lets them go on.
class StoppedTree {
 public:
  // Stops everything, looking again until no new process or thread turns up. `found` is where it begins, parents before
  // children; `more_roots` is asked for roots again in each pass, and may be empty. With `passing`, no calls are to be
  // made in the processes: they only pass through a stop.
  StoppedTree(const std::vector<ProcessRef>& found, const std::function<std::vector<pid_t>()>& more_roots,
              InterruptedCalls& calls, bool passing = false);
  StoppedTree(const std::vector<pid_t>& roots, InterruptedCalls& calls);
  StoppedTree(const StoppedTree&) = delete;
  StoppedTree& operator=(const StoppedTree&) = delete;
  ~StoppedTree();

  std::vector<StoppedProcess>& processes() { return processes_; }
  void resume() noexcept;
  // SIGKILL instead of going on.
  void kill() noexcept;

 private:
  void stop_all(std::vector<ProcessRef> found, const std::function<std::vector<pid_t>()>& more_roots,
                const std::function<void(StoppedProcess&)>& note);
  bool each_held(size_t first, const std::function<void(StoppedProcess&)>& work);
  bool hold(const std::vector<ProcessRef>& refs);
  std::vector<ProcessRef> find_new(const std::vector<pid_t>& roots) const;

  std::vector<StoppedProcess> processes_;
  std::set<pid_t> held_;
};

}  // namespace icp
