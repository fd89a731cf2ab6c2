// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/slurm_jobs.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>

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

std::string text_of(const char* text) { return text == nullptr ? "" : text; }

// As squeue and sacct write it.
std::string end_state(uint32_t state) {
  switch (state) {
    case JOB_COMPLETE:
      return "COMPLETED";
    case JOB_CANCELLED:
      return "CANCELLED";
    case JOB_FAILED:
      return "FAILED";
    case JOB_TIMEOUT:
      return "TIMEOUT";
    case JOB_NODE_FAIL:
      return "NODE_FAIL";
    case JOB_PREEMPTED:
      return "PREEMPTED";
    case JOB_BOOT_FAIL:
      return "BOOT_FAIL";
    case JOB_DEADLINE:
      return "DEADLINE";
    case JOB_OOM:
      return "OUT_OF_MEMORY";
    default:
      return "";
  }
}

using Change = std::function<void(job_desc_msg_t&)>;

uint32_t change_job(uint32_t id, const Change& change) {
  job_desc_msg_t message;
  slurm_init_job_desc_msg(&message);
  job_number(message) = id;
  change(message);
  return code_of(slurm_update_job(&message));
}

// Held, so that it does not begin before it is changed.
uint32_t requeue_and_change(uint32_t id, const Change& change) {
  if (const uint32_t code = code_of(slurm_requeue(job_name(id), JOB_REQUEUE_HOLD)); code != 0) return code;
  const uint32_t code = change_job(id, change);
  const uint32_t released = change_job(id, [](job_desc_msg_t& message) {
    message.priority = INFINITE;  // as scontrol release does
  });
  return code != 0 ? code : released;
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
    job.nodes = text_of(info.nodes);
    job.excluded = text_of(info.exc_nodes);
    job.comment = text_of(info.comment);
    job.end_state = end_state(base);
    job.preempted = info.preempt_time != 0;
    code = 0;
  }
  slurm_free_job_info_msg(message);
  return code;
}

bool is_unreachable(uint32_t code) { return code != 0 && (code < 2000 || code == 5004) && code != kInProgress; }

uint32_t requeue_job(uint32_t id) { return code_of(slurm_requeue(job_name(id), 0)); }

uint32_t requeue_job_on(uint32_t id, const std::string& nodes) {
  std::string list = nodes;
  return requeue_and_change(id, [&list](job_desc_msg_t& message) { message.req_nodes = list.data(); });
}

uint32_t requeue_job_without(uint32_t id, const std::string& nodes) {
  SlurmJob job;
  if (const uint32_t code = load_job(id, job); code != 0) return code;
  std::string list = job.excluded.empty() ? nodes : job.excluded + "," + nodes;
  return requeue_and_change(id, [&list](job_desc_msg_t& message) { message.exc_nodes = list.data(); });
}

uint32_t requeue_job_held(uint32_t id, const std::string& why) {
  SlurmJob job;
  if (const uint32_t code = load_job(id, job); code != 0) return code;
  if (const uint32_t code = code_of(slurm_requeue(job_name(id), JOB_REQUEUE_HOLD)); code != 0) return code;
  std::string comment = job.comment.empty() ? why : job.comment + "; " + why;
  return change_job(id, [&comment](job_desc_msg_t& message) { message.comment = comment.data(); });
}

uint32_t load_nodes(std::vector<SlurmNode>& nodes) {
  node_info_msg_t* message = nullptr;
  if (const uint32_t code = code_of(slurm_load_node(0, &message, SHOW_ALL)); code != 0) return code;
  for (uint32_t i = 0; i < message->record_count; i++) {
    const node_info_t& node = message->node_array[i];
    if (node.name == nullptr) continue;
    nodes.push_back({node.name, text_of(node.reason), (node.node_state & (NODE_STATE_DRAIN | NODE_STATE_MAINT)) != 0});
  }
  slurm_free_node_info_msg(message);
  return 0;
}

uint32_t drain_nodes(const std::string& nodes, const std::string& reason) {
  update_node_msg_t change;
  slurm_init_update_node_msg(&change);
  std::string list = nodes, why = reason;
  change.node_names = list.data();
  change.reason = why.data();
  change.reason_uid = ::geteuid();
  change.node_state = NODE_STATE_DRAIN;
  return code_of(slurm_update_node(&change));
}

std::vector<std::string> names_of_nodes(const std::string& list, size_t most) {
  std::vector<std::string> names;
  // A name with several brackets is expanded at once, whatever its size.
  if (list.find("][") != std::string::npos || list.find_first_of(" \t\n\r") != std::string::npos) return names;
  const auto hosts = slurm_hostlist_create(list.c_str());
  if (hosts == nullptr) return names;
  const int count = slurm_hostlist_count(hosts);
  while (count > 0 && static_cast<size_t>(count) <= most) {
    char* const name = slurm_hostlist_shift(hosts);
    if (name == nullptr) break;
    names.emplace_back(name);
    std::free(name);
  }
  slurm_hostlist_destroy(hosts);
  return names;
}

uint32_t cancel_job(uint32_t id) { return code_of(slurm_kill_job(job_name(id), SIGKILL, KILL_FULL_JOB)); }

std::string slurm_text(uint32_t code) { return slurm_strerror(static_cast<int>(code)); }

}  // namespace icp
