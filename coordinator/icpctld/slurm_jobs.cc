// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/slurm_jobs.h"

#include <signal.h>

#include <cerrno>
#include <cstring>

#include "coordinator/slurm_api.h"

namespace icp {
namespace {

using slurm::job_name;
using slurm::job_number;

uint32_t code_of(int result) {
  if (result == SLURM_SUCCESS) return 0;
  const int error = errno;
  return static_cast<uint32_t>(error == 0 ? SLURM_ERROR & 0xffff : error);
}

}  // namespace

void init_slurm(const std::string& slurm_conf) { slurm_init(slurm_conf.empty() ? nullptr : slurm_conf.c_str()); }

uint32_t load_job(uint32_t id, SlurmJob& job) {
  job_info_msg_t* message = nullptr;
  if (const uint32_t code = code_of(slurm_load_job(&message, job_name(id), SHOW_ALL)); code != 0) return code;
  uint32_t code = kInvalidJobId;
  for (uint32_t i = 0; i < message->record_count; i++) {
    const slurm_job_info_t& info = message->job_array[i];
    if (job_number(info) != id) continue;
    const uint32_t base = info.job_state & JOB_STATE_BASE;
    job.id = id;
    job.uid = info.user_id;
    job.state = base == JOB_PENDING                            ? SlurmJob::kPending
                : base == JOB_RUNNING || base == JOB_SUSPENDED ? SlurmJob::kRunning
                                                               : SlurmJob::kFinished;
    job.batch = info.batch_flag != 0;
    job.completing = (info.job_state & JOB_COMPLETING) != 0;
    job.restarts = info.restart_cnt;
    job.requeue = info.requeue != 0;
    job.start = info.start_time;
    job.end = info.time_limit == INFINITE || info.time_limit == NO_VAL ? 0 : info.end_time;
    job.nodes = info.nodes == nullptr ? "" : info.nodes;
    code = 0;
  }
  slurm_free_job_info_msg(message);
  return code;
}

bool is_unreachable(uint32_t code) { return code != 0 && (code < 2000 || code == 5004) && code != kInProgress; }

uint32_t requeue_job(uint32_t id) { return code_of(slurm_requeue(job_name(id), 0)); }

uint32_t requeue_job_on(uint32_t id, const std::string& nodes) {
  // Held, so that it does not begin before its nodes are set.
  if (const uint32_t code = code_of(slurm_requeue(job_name(id), JOB_REQUEUE_HOLD)); code != 0) return code;
  job_desc_msg_t change;
  slurm_init_job_desc_msg(&change);
  job_number(change) = id;
  std::string list = nodes;
  change.req_nodes = list.data();
  const uint32_t code = code_of(slurm_update_job(&change));
  slurm_init_job_desc_msg(&change);
  job_number(change) = id;
  change.priority = INFINITE;  // as scontrol release does
  const uint32_t released = code_of(slurm_update_job(&change));
  return code != 0 ? code : released;
}

uint32_t cancel_job(uint32_t id) { return code_of(slurm_kill_job(job_name(id), SIGKILL, KILL_FULL_JOB)); }

std::string slurm_text(uint32_t code) { return slurm_strerror(static_cast<int>(code)); }

}  // namespace icp
