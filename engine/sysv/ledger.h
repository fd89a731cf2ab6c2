// SPDX-License-Identifier: GPL-2.0-or-later
// What a node knows about the System V objects of each job: where they are, and at the end of the job, that they go.
//
// <base>/<node>/job_<id>.<restart>/ (root, 0700; base is /run/slurm-icp) holds
//   facts    the job's user, mode and begin
//   ipcns    mode private: the job's IPC namespace, pinned by a bind mount (namespaces(7))
//   pids     mode host: processes of the job, with the times at which they had their pids
//   objects  mode host: objects they made, as seen while the job ran
// The node is in the path since several slurmds of one machine share /run; the restart count since the epilog of a
// run may come when the job runs again. <base>/<node>/lock serialises everything by flock(2).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/process/stopped_tree.h"
#include "engine/sysv/ipc_list.h"
#include "engine/sysv/ledger_records.h"
#include "engine/sysv/shm_events.h"

namespace icp {

inline constexpr char kLedgerBase[] = "/run/slurm-icp";

// Which runs of a job (by restart count): those that meet all conditions given.
struct LedgerRuns {
  std::optional<uint32_t> only, except, below;
  bool contains(uint32_t restart) const {
    return (!only || restart == *only) && (!except || restart != *except) && (!below || restart < *below);
  }
};

struct LedgerCleanup {
  uint32_t job = 0, restart = 0;
  std::vector<IpcObject> removed;     // to be logged
  std::vector<std::string> problems;  // sentences; what could be done was done, and another cleanup may do the rest
};

struct LedgerEntry {
  uint32_t job = 0, restart = 0;
  std::optional<LedgerFacts> facts;  // none: a step died while making it
  bool in_use = false;               // a process is in the namespace, or one of the recorded ones is alive
};

// One thread only. Needs root.
class JobLedger {
 public:
  // For each step of a job when it starts. The first one makes the ledger and, with kPrivate, an IPC namespace with
  // the limits of the present one, and moves the calling thread there; later ones join. Later threads and processes
  // inherit it. The mode of an existing ledger counts, not `mode`. kPermission when the ledger is another user's or
  // not safe; kBusy when the lock is held for more than 30 s; after an error the thread is where it was.
  static JobLedger create_or_join(const std::string& base, const std::string& node, uint32_t job, uint32_t restart,
                                  uid_t uid, IpcMode mode);
  // An existing ledger, for the agent: changes no namespace.
  static std::optional<JobLedger> open(const std::string& base, const std::string& node, uint32_t job,
                                       uint32_t restart);

  const LedgerFacts& facts() const { return facts_; }
  const std::string& directory() const { return directory_; }

  // Mode host (else they do nothing): the job's processes as they are now, all that this agent knows of; then what
  // they made since. Call both at every look at the tree. Processes that come and go between two looks are not known,
  // and what they leave behind is removed only if record_creations(), called in between, tells of it.
  void record_pids(const std::vector<ProcessRef>& processes);
  void record_creations(const std::vector<ShmCreation>& by_the_job);
  void record_objects();
  // There was no room for all: what the job leaves behind may not be known.
  bool full() const { return full_; }

  // The end of a job on this node: removes its objects and then its ledger. For each run that was found one result.
  // Repeatable at any point; finishes what another one began. Does not throw but for a lock or directory that cannot
  // be used. Processes of the job should be dead: else they keep the objects they have attached until they end.
  // From outside the job's namespace (the epilog's is the node's).
  static std::vector<LedgerCleanup> cleanup(const std::string& base, const std::string& node, uint32_t job,
                                            const LedgerRuns& runs);
  // All ledgers of a node. After slurmd was down, those whose jobs the controller does not know here any more are to
  // be cleaned up; one that is in use may belong to a job that goes on.
  static std::vector<LedgerEntry> find_stale(const std::string& base, const std::string& node);

 private:
  JobLedger(std::string directory, LedgerFacts facts) : directory_(std::move(directory)), facts_(std::move(facts)) {}

  std::string directory_;
  LedgerFacts facts_;
  bool full_ = false;
  std::map<std::pair<pid_t, uint64_t>, PidSpan> spans_;  // recorded by this agent; ended ones until the next look
  std::vector<IpcObject> recorded_;
  std::map<int, ShmCreation> creations_;  // segments made by processes of the job, by id
};

}  // namespace icp
