// SPDX-License-Identifier: GPL-2.0-or-later
// A capsule under checkpointing: what icp and icpstepd use of libicp.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/finding.h"
#include "engine/base/identity.h"
#include "engine/base/path_map.h"
#include "engine/files/file_table.h"
#include "engine/image/image_dir.h"
#include "engine/tracker/page_tracker.h"

namespace icp {

struct SessionConfig {
  std::string image_path;  // directory of versions
  Identity identity;       // owner of image and files
  std::string node;        // name of this node in the image
  pb::JobFacts job;
  TrackerKind tracker = TrackerKind::kAuto;
  uint64_t staging_limit = 1ull << 30;           // bytes
  bool precopy = true;                           // copy written pages while the processes run, ahead of the stop
  Compression compression = Compression::kNone;  // of page files; done while the processes run
  // Trackings outlive the session, where the kernel can do that (kernel-module): a later session of the same processes
  // and image then begins with an incremental version.
  bool keep_tracking = false;
  // Content of regular files that are open for writing, in the version: none but small ones, or all.
  CheckpointFiles checkpoint_files = CheckpointFiles::kNone;
  std::vector<std::string> directories;  // kept whole: see saved_directories.h
  bool dedup = false;  // pages rewritten with what they held are not stored again; 16 bytes of memory a page
  std::vector<OuterStreamId> outer;  // standard streams and PMI connections the tasks were started with
  // Further ones, which came since; asked before each version. May be empty.
  std::function<std::vector<OuterStreamId>()> more_outer;
  // Adds to a version what only the caller knows, while the processes are stopped. May be empty.
  std::function<void(pb::Capsule&)> describe;
  NetworkScope network;              // TCP connections to other capsules and to the outside
  bool whole_ipc_namespace = false;  // all System V objects of the roots' IPC namespace are the capsule's
  // Further processes of the capsule (agent's view) that need not descend from the roots: orphans, known by their
  // cgroup or their subreaper. May be empty.
  std::function<std::vector<pid_t>()> more_processes;
  // The roots are tasks of a step: when all of them are stopped, Slurm has suspended it, and a restart lets them go on.
  bool may_be_suspended = false;
  // By task rank: the processors (a cpu_set_t) that the task was given, of which a restart elsewhere gives it others.
  std::map<int, std::string> task_cpus;
  // By rank, wait(2) statuses of tasks that have ended while others run: they belong to a version. Empty: only the
  // roots that are alive are the capsule's tasks.
  std::function<std::map<int, int>()> ended_tasks;
};

struct TaskRoot {
  pid_t pid = 0;  // the agent's view
  int rank = 0;
  uint64_t start_time = 0;  // see ProcessRef; 0: not known
};

// Outcome of one version.
struct CheckpointResult {
  uint32_t version = 0;
  uint64_t taken_unix_ns = 0;
  pb::VersionStats stats;
};

// How one version is to be taken.
struct CheckpointOptions {
  // Kill the processes once the version is committed; they do not run on after the stop.
  bool kill = false;
  // What counts is when it is there, and not how long the processes are stopped: nothing is copied while they run,
  // which they may write to again. Of several capsules, which stop each other, as much once.
  bool soon = false;
  uint32_t version = 0;  // its number, higher than any of this node in the image; 0: the next one
  // Another image than the session's. It gets a full version, unless it also got the last one, and so does the
  // session's own afterwards.
  std::string image_path;
  std::vector<std::string> nodes;  // all nodes that take this version together: it is whole when each has committed
  // As in SessionConfig::network, for this version: other capsules may have come since the last one. Empty: that.
  decltype(NetworkScope::inside_job) inside_job;
  // Called in the session's thread when a phase is through. Returns when the next one may begin, which is how several
  // sessions make one consistent version; whatever it throws gives the version up and lets the processes run on. May
  // be empty. With one, a version that fails for a transient reason is not tried again here.
  enum class Phase {
    kPrepared,   // written pages were copied while the processes ran
    kStopped,    // every process is stopped
    kCollected,  // everything is in memory; returning lets the processes run on
    kWritten,    // all files are flushed; returning renames them into place
  };
  std::function<void(Phase)> gate;
  // Called once the version is the latest one of this node. Returning kills the processes if that was asked for;
  // throwing lets them run on. May be empty.
  std::function<void(const CheckpointResult&)> committed;
};

// The tree below some roots, and its versions. All members throw Error; a failed checkpoint leaves the processes
// running and the last committed version the latest one.
//
// Everything runs in the thread that made the session (ptrace belongs to a thread). A process that is killed while
// it is stopped is left out of the version.
class Session {
 public:
  Session(SessionConfig config, std::vector<TaskRoot> roots);
  Session(Session&&) noexcept;
  ~Session();

  // What stops a checkpoint now, resource by resource. Stops nothing.
  Findings check() const;
  // One version: prepare, stop, collect, go on, write, commit. Throws kRefused (with all findings in its text)
  // before anything is stopped.
  CheckpointResult checkpoint(const CheckpointOptions& options);
  CheckpointResult checkpoint(bool kill = false);
  // Makes sure that nobody else takes versions into the image from now on, rather than from the first version on.
  // Throws kBusy with the sentence that says who does.
  void claim();
  // True while at least one process of the tree is alive.
  bool alive() const;
  std::vector<TaskRoot> roots() const;
  void kill();  // SIGKILL to every process of the tree

 private:
  friend class RestoredCapsule;
  struct Impl;
  explicit Session(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Captures nothing; convenience for `icp check`.
Findings check_tree(const std::vector<pid_t>& roots, const std::vector<OuterStreamId>& outer);

// Standard streams of a root process that lead out of the tree (a terminal, a pipe or socket whose other end is not in
// the tree), as they are now.
std::vector<OuterStreamId> outer_streams_of(pid_t root, int rank, bool include_regular = false);

struct RestoreOptions {
  std::string image_path;
  uint32_t version = 0;                       // 0: the latest
  std::string node;                           // whose capsule; empty: the only one
  Identity identity;                          // the restored processes' ids and groups
  std::map<int, std::array<int, 3>> streams;  // standard streams by task rank; missing ranks get /dev/null
  std::map<int, std::string> task_cpus;       // by rank, a cpu_set_t: what the step gives them; missing: what was saved
  std::map<int, int> pmi;       // connections to the process manager (PMI) by task rank, already initialized
  int pmix_relay = -1;          // what kPmixRelayStream is from now on; -1: there is none
  std::map<int, int> launched;  // what kLaunchStream is from now on, by the number of the launched step
  ChangedFiles changed = ChangedFiles::kRestore;
  // A process of the step whose cgroups and limits the restored ones get; 0: those of the caller.
  pid_t like = 0;
  // By task rank, where Slurm has put each into cgroups of its own: whose cgroups its processes get. Missing: `like`'s.
  std::map<int, pid_t> task_places;
  std::string init_path;  // the icp-init program; empty: beside the running program, else the installed one
  PathMap path_map;
  NetworkRestore network;
  bool track = true;  // arm trackers before anything runs, for continue_session()
  // Private anonymous memory comes when it is touched, or by and by (lazy_fill.h); the first version after that waits
  // until all is there, and looks at all of it. kRefused where the kernel does not allow it.
  bool lazy = false;
  TrackerKind tracker = TrackerKind::kAuto;
  // A rehearsal beside the running job: all goes as in a restart, up to the moment before anything runs, but that
  // nothing outside of the new namespaces is changed or taken. Files are opened for reading and compared; unnamed ones
  // stand in for those that would be written to, unnamed pipes for FIFOs; locks, leases and names of Unix sockets are
  // left to who has them. Ports and abstract names are free in a network namespace of the caller's
  // (enter_own_network()); what needs one is left out otherwise, with a warning that names it. Set by
  // RestoredCapsule::rehearse().
  bool dry = false;
};

struct TaskExit {
  int rank = 0;
  int status = 0;  // wait(2) status
};

// A restored tree in namespaces of its own. The destructor kills it unless detached.
class RestoredCapsule {
 public:
  // Rebuilds everything, then lets it run. On any error nothing has run and nothing outside was changed.
  static RestoredCapsule restore(const RestoreOptions& options);
  // Whether restore() would succeed: rebuilds everything beside the running job and throws it away
  // (RestoreOptions::dry). Throws what restore() would. Takes as much memory as the job.
  static void rehearse(const RestoreOptions& options);
  RestoredCapsule(RestoredCapsule&&) noexcept;
  ~RestoredCapsule();

  uint32_t version() const;
  const pb::Manifest& manifest() const;
  pid_t init_pid() const;               // the agent's view
  std::vector<TaskRoot> roots() const;  // the agent's view
  std::vector<TaskExit> ended() const;  // tasks that had ended before the version
  // Readable when a task has ended; then take_exits() returns them.
  int event_fd() const;
  std::vector<TaskExit> take_exits();
  // After a lazy restore: waits until all memory is there; throws if it cannot be had. Else returns at once.
  void wait_for_memory();
  // Ends the capsule: kills everything in its namespaces.
  void kill();
  void detach();                // waits for the memory
  void signal_all(int signal);  // to every process of the capsule but its init
  // Goes on checkpointing the restored tree, incrementally from the version it came from. Once.
  Session continue_session(SessionConfig config);

 private:
  struct Impl;
  explicit RestoredCapsule(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace icp
