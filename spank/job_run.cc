// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/job_run.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <optional>

#include "engine/base/error.h"
#include "engine/sysv/run_dir.h"
#include "spank/slurm_api.h"

namespace icp::spank {
namespace {

std::optional<uint32_t> ask_slurm(uint32_t job) {
  job_info_msg_t* answer = nullptr;
  if (::slurm_load_job(&answer, slurm::job_name(job), SHOW_ALL) != SLURM_SUCCESS) {
    slurm_error("spank_icp: job %u: cannot ask Slurm how often it was requeued: %s", job, ::slurm_strerror(errno));
    return std::nullopt;
  }
  std::optional<uint32_t> count;
  for (uint32_t i = 0; i < answer->record_count; i++) {  // several for a heterogeneous job
    slurm_job_info_t& one = answer->job_array[i];
    if (slurm::job_number(one) == job) count = one.restart_cnt;
  }
  ::slurm_free_job_info_msg(answer);
  return count;
}

}  // namespace

void record_restart_count(const std::string& run_dir, const std::string& node, uint32_t job, uint32_t count) {
  const std::string name = RunDir::job_file(job, "run"), fresh = name + ".new";
  const RunDir dir = RunDir::make(run_dir, node);
  // The steps of an earlier run say nothing about this one's.
  dir.remove(RunDir::job_file(job, "steps"));
  const UniqueFd file = dir.open(fresh, O_WRONLY | O_CREAT | O_TRUNC);
  const std::string text = std::to_string(count) + "\n";
  if (!file || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      !dir.rename(fresh, name)) {
    throw_errno("cannot write {}/{}", dir.path(), name);
  }
}

uint32_t restart_count(const std::string& run_dir, const std::string& node, uint32_t job) {
  const auto dir = RunDir::find(run_dir, node);
  const UniqueFd file = dir ? dir->open(RunDir::job_file(job, "run"), O_RDONLY) : UniqueFd();
  char text[16] = "";
  if (file && ::read(file.get(), text, sizeof text - 1) > 0)
    return static_cast<uint32_t>(std::strtoul(text, nullptr, 10));
  const auto count = ask_slurm(job);
  if (count) record_restart_count(run_dir, node, job, *count);  // the other steps need not ask
  return count.value_or(0);
}

void note_numbered_step(const std::string& run_dir, const std::string& node, uint32_t job) {
  RunDir::make(run_dir, node).open(RunDir::job_file(job, "steps"), O_WRONLY | O_CREAT);
}

}  // namespace icp::spank
