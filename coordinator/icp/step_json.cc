// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/step_json.h"

#include <nlohmann/json.hpp>

#include "coordinator/icp/format.h"
#include "coordinator/icp/job_id.h"
#include "coordinator/icp/step_text.h"
#include "coordinator/icp/users.h"

namespace icp {

using nlohmann::json;

namespace {

json head_json(uint32_t job, int32_t step, uint32_t uid) {
  return {{"job", job}, {"step", step}, {"name", job_step_text(job, step)}, {"uid", uid}, {"user", user_name(uid)}};
}

json version_json(const net::VersionRecord& version) {
  const net::VersionNumbers& numbers = version.numbers();
  return {{"version", numbers.version()},
          {"taken", utc_time(numbers.taken_unix_ns())},
          {"taken_unix_ns", numbers.taken_unix_ns()},
          {"nodes", version.nodes()},
          {"processes", numbers.processes()},
          {"pages_written", numbers.pages()},
          {"bytes_written", numbers.bytes()},
          {"stop_ns", numbers.stop_ns()},
          {"total_ns", numbers.total_ns()},
          {"full", numbers.full()},
          {"tracker", numbers.tracker()}};
}

json step_json(const net::StepStatus& step) {
  json value = head_json(step.job(), step.step(), step.uid());
  value["restarts"] = step.restarts();
  value["running"] = step.running();
  value["disabled"] = step.disabled();
  value["image"] = step.image();
  value["nodes"] = step.nodes();
  value["hosts"] = step.hosts();
  value["nodes_expected"] = step.nodes_expected();
  value["interval_ms"] = step.interval_ms();
  value["next_unix_ms"] = step.next_unix_ms();
  value["phase"] = phase_text(step);
  value["round_began_unix_ms"] = step.round_began_unix_ms();
  value["last_code"] = step.last_code();
  value["last_error"] = step.last_error();
  value["versions_total"] = step.versions_total();
  value["versions"] = json::array();
  for (const net::VersionRecord& version : step.versions()) value["versions"].push_back(version_json(version));
  return value;
}

json object_json(const net::IpcObject& object) {
  return {{"kind", object.kind()},
          {"key", object.key()},
          {"id", object.id()},
          {"bytes", object.bytes()},
          {"mode", object.mode()},
          {"creator_pid", object.creator_pid()},
          {"attached", object.attached()},
          {"attached_pids", object.attached_pids()},
          {"created_unix", object.created_unix()}};
}

}  // namespace

json steps_json(const net::Reply& reply) {
  json all = json::array();
  for (const net::StepStatus& step : reply.steps()) all.push_back(step_json(step));
  return all;
}

json ipc_json(const net::Reply& reply) {
  json all = json::array();
  for (const net::NodeIpc& node : reply.ipc()) {
    json value = head_json(node.job(), node.step(), node.uid());
    value["node"] = node.node();
    value["objects"] = json::array();
    for (const net::IpcObject& object : node.objects()) value["objects"].push_back(object_json(object));
    all.push_back(std::move(value));
  }
  return all;
}

}  // namespace icp
