// SPDX-License-Identifier: GPL-2.0-or-later
// What icpctld remembers: steps, their versions, what went wrong. SQLite in WAL mode: what was written before icpctld
// was killed is there afterwards; after a power failure, all but perhaps the last seconds.
#pragma once

#include <sys/types.h>

#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/protocol/coordinator.pb.h"

struct sqlite3;
struct sqlite3_stmt;

namespace icp {

struct StepKey {
  uint32_t job = 0;
  int32_t step = 0;
  uint32_t restarts = 0;
  auto operator<=>(const StepKey&) const = default;
};

struct StepFactsRecord {
  StepKey key;
  uid_t uid = 0;
  std::string image;
  uint32_t nodes = 1;
  uint64_t interval_ms = 0;
  bool running = false;
  uint32_t last_code = 0;  // of the last version or request: Slurm's number, 0 when it went well
  std::string last_error;
  uint32_t versions = 0;  // how many are known
  // Of a step that runs; not in the catalog.
  bool at_preempt = false;           // as AgentHello has it
  std::set<std::string> lost_hosts;  // whose agents, of any step of the run, went without a word
};

inline constexpr size_t kMostRuns = 1000;  // of a job, that are looked at

// A job between its start and its end or requeue.
struct RunKey {
  uint32_t job = 0;
  uint32_t restarts = 0;
};

// One thread. Members throw Error (kSystem) naming the file.
class Catalog {
 public:
  // Opens or makes <directory>/catalog.sqlite; the directory must exist. kBusy when another icpctld has it open.
  explicit Catalog(const std::string& directory);
  ~Catalog();
  // Another connection, that only reads: for a thread of its own. What is written is seen at once.
  std::unique_ptr<const Catalog> reader() const;
  Catalog(const Catalog&) = delete;
  Catalog& operator=(const Catalog&) = delete;

  void step_seen(const StepFactsRecord& step);
  void step_ended(const StepKey& key);
  void result(const StepKey& key, uint32_t code, const std::string& text);
  // A version that is committed on all nodes. One that is known already is left as it is.
  void version(const StepKey& key, const net::VersionNumbers& numbers, uint32_t nodes);
  // A step and all, newest first; job 0: all jobs.
  // With `owner` or `step` only what matches.
  std::vector<StepFactsRecord> steps(uint32_t job, size_t limit, std::optional<uid_t> owner = {},
                                     std::optional<int32_t> step = {}) const;
  std::vector<net::VersionRecord> versions(const StepKey& key, size_t limit) const;

  // How often checkpoints were disabled and not enabled again. `step`: of one step, else of the whole job.
  uint32_t disabled(uint32_t job, std::optional<int32_t> step) const;
  void set_disabled(uint32_t job, std::optional<int32_t> step, uint32_t count);

  // Where run number `restarts` of a job goes on from, if not from its own image. Empty: nobody said so.
  std::string restart_dir(uint32_t job, uint32_t restarts) const;
  void set_restart_dir(uint32_t job, uint32_t restarts, const std::string& directory);

  // A run of a job, from its first agent to its last; `nodes` where they are, with commas.
  void run_seen(const RunKey& key, uid_t uid, const std::string& nodes);
  void run_ended(const RunKey& key);
  // Why it ended, or will: the first who says so is right.
  void run_ends_because(const RunKey& key, const std::string& why, bool restart_failed = false);
  // Its processes have not run since its last version, nor will they.
  void run_held(const RunKey& key, bool held);
  // A step of it was reported that did nothing since then.
  void run_hung(const RunKey& key, uint64_t since_unix_ms);
  // The first one first, at most the last `limit` of them.
  std::vector<net::RunRecord> runs(uint32_t job, size_t limit) const;

  // Removes what belongs to steps that ended more than `seconds` ago.
  void forget(int64_t seconds);

 private:
  class Statement;
  struct ReadOnly {};
  Catalog(std::string path, ReadOnly);
  void close();
  void run(const char* sql) const;
  [[noreturn]] void fail(const char* doing) const;

  std::string path_;
  int lock_ = -1;
  sqlite3* db_ = nullptr;
};

}  // namespace icp
