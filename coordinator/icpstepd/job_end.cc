// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/job_end.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <optional>
#include <thread>
#include <vector>

#include "coordinator/icpstepd/cgroups.h"
#include "engine/base/error.h"
#include "engine/base/printable.h"
#include "engine/sysv/ledger.h"
#include "engine/sysv/run_dir.h"

namespace icp {
namespace {

constexpr auto kEnding = std::chrono::seconds(3);  // for a slurmstepd whose steps have ended to be gone, on a busy node
constexpr time_t kYoung = 60;  // seconds: a ledger this new may belong to a job whose first step is just starting

// Into the log, and to slurmd's (the epilog's stderr).
void report(const std::string& line, bool warning = false) {
  if (warning) {
    spdlog::warn("{}", line);
  } else {
    spdlog::info("{}", line);
  }
  std::fprintf(stderr, "icpstepd: %s\n", printable(line).c_str());
}

// Nothing: no job has ever run here, or the directory is not one of ours.
std::optional<RunDir> run_dir_of(const Config& config, const std::string& node) {
  try {
    return RunDir::find(config.run_dir, node);
  } catch (const Error& error) {
    report(error.what(), true);
    return std::nullopt;
  }
}

// See engine/sysv/ledger.h. May be empty.
std::string pin_of(const std::optional<RunDir>& run_dir, uint32_t job, uint32_t restarts) {
  return run_dir ? run_dir->job_directory(job, restarts) + "/ipcns" : std::string();
}

// slurmd runs the epilog when the steps are over; their slurmstepd may still be on its way out. One that stays is that
// of the job's next run.
bool runs_again(const std::string& node, uint32_t job, const std::string& pin) {
  const auto until = std::chrono::steady_clock::now() + kEnding;
  while (job_has_slurmstepd(node, job, pin)) {
    if (std::chrono::steady_clock::now() > until) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return false;
}

void clean_ledger(const Config& config, const std::string& node, uint32_t job, const LedgerRuns& runs) {
  for (const LedgerCleanup& result : JobLedger::cleanup(config.run_dir, node, job, runs)) {
    for (const IpcObject& object : result.removed) report(fmt::format("job {}: removed {}", job, describe(object)));
    for (const std::string& problem : result.problems) report(fmt::format("job {}: {}", job, problem), true);
  }
}

}  // namespace

void end_job(const Config& config, const std::string& node, uint32_t job, uid_t uid, uint32_t restarts) {
  LedgerRuns runs;
  const auto run_dir = run_dir_of(config, node);
  if (runs_again(node, job, pin_of(run_dir, job, restarts))) {
    // The job runs again already, here: this epilog is that of an earlier run.
    runs.below = restarts;
    report(fmt::format("job {}: late epilog, the job runs again", job));
  } else {
    const JobName name = JobName::of_environment(job);
    if (const size_t killed = kill_job_processes(node, uid, name); killed > 0) {
      report(fmt::format("job {}: killed {} process{} left behind", job, killed, killed == 1 ? "" : "es"));
    }
    remove_job_cgroups(node, uid, name);
    runs.below = restarts + 1;
    for (const char* what : {"run", "steps"}) {
      if (run_dir) run_dir->remove(RunDir::job_file(job, what));
    }
  }
  if (config.ipc != IpcPolicy::kOff && run_dir) clean_ledger(config, node, job, runs);
}

void clean_stale(const Config& config) {
  if (config.ipc == IpcPolicy::kOff) return;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(config.run_dir, ignored)) {
    const std::string node = entry.path().filename();
    if (!entry.is_directory(ignored) || !is_node_name(node)) continue;
    const auto run_dir = run_dir_of(config, node);
    if (!run_dir) continue;
    for (const LedgerEntry& ledger : JobLedger::find_stale(config.run_dir, node)) {
      const bool young = ledger.facts && std::time(nullptr) - ledger.facts->since < kYoung;
      const std::string pin = pin_of(run_dir, ledger.job, ledger.restart);
      if (ledger.in_use || young || job_has_slurmstepd(node, ledger.job, pin)) continue;
      report(fmt::format("job {}: nothing of it runs on {} any more", ledger.job, node));
      clean_ledger(config, node, ledger.job, {.only = ledger.restart, .except = {}, .below = {}});
    }
  }
}

}  // namespace icp
