// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/step_text.h"

#include <fmt/format.h>

#include <array>
#include <chrono>

#include "coordinator/duration.h"
#include "coordinator/icp/format.h"
#include "coordinator/icp/job_id.h"
#include "coordinator/icp/users.h"
#include "coordinator/protocol/slurm_errors.h"

namespace icp {

namespace {

template <typename... Args>
void line(std::string& text, fmt::format_string<Args...> format, Args&&... args) {
  text += printable(fmt::format(format, std::forward<Args>(args)...)) + "\n";
}

std::string interval_text(const net::StepStatus& step) {
  const bool usable = step.interval_ms() > 0 && step.interval_ms() < INT64_MAX;
  return usable ? format_duration(std::chrono::milliseconds(step.interval_ms())) : "-";
}

// "in 20 s", "now"; "-" if none is planned.
std::string next_text(const net::StepStatus& step, uint64_t now) {
  if (step.next_unix_ms() == 0 || !step.running()) return "-";
  return step.next_unix_ms() <= now ? "now" : "in " + rough_duration(step.next_unix_ms() - now);
}

uint64_t since(uint64_t began, uint64_t now) { return began < now ? now - began : 0; }

std::string state_text(const net::StepStatus& step) {
  return fmt::format("{}{}", step.running() ? "running" : "ended", step.disabled() ? ", disabled" : "");
}

// Of the last round.
std::string error_text(const net::StepStatus& step) {
  if (step.last_code() == net::kSlurmSuccess) return "";
  return fmt::format("error({}): {}", step.last_code(),
                     step.last_error().empty() ? net::slurm_error_text(step.last_code()) : step.last_error());
}

std::string indented(const std::string& text) {
  std::string result = "  ";
  for (size_t i = 0; i < text.size(); i++) {
    result += text[i];
    if (text[i] == '\n' && i + 1 < text.size()) result += "  ";
  }
  return result;
}

std::string versions_table(const net::StepStatus& step) {
  Table table(
      {">VERSION", "TAKEN", ">NODES", ">PROCESSES", ">PAGES", ">BYTES", ">STOPPED", ">TOTAL", "KIND", "TRACKER"});
  for (const net::VersionRecord& version : step.versions()) {
    const net::VersionNumbers& numbers = version.numbers();
    table.add({std::to_string(numbers.version()), local_time(numbers.taken_unix_ns()), std::to_string(version.nodes()),
               with_commas(numbers.processes()), with_commas(numbers.pages()), human_bytes(numbers.bytes()),
               human_time(numbers.stop_ns()), human_time(numbers.total_ns()), numbers.full() ? "full" : "incremental",
               printable(numbers.tracker())});
  }
  return table.text();
}

// " n1 n2 (on n1)": a restored capsule keeps the name of the node it began on.
std::string nodes_text(const net::StepStatus& step) {
  std::string text;
  for (int i = 0; i < step.nodes_size(); ++i) {
    text += " " + step.nodes(i);
    const std::string host = i < step.hosts_size() ? step.hosts(i) : "";
    if (!host.empty() && host != step.nodes(i)) text += " (on " + host + ")";
  }
  return text;
}

void append_step(std::string& text, const net::StepStatus& step, uint64_t now) {
  const std::string nodes = nodes_text(step);
  line(text, "{}: {}, user {}{}", job_step_text(step.job(), step.step()), state_text(step), user_name(step.uid()),
       step.restarts() > 0 ? ", " + counted(step.restarts(), "restart") : "");
  line(text, "  image     {}", step.image());
  if (step.running()) {
    line(text, "  nodes     {} of {} connected:{}", step.nodes_size(), step.nodes_expected(),
         nodes.empty() ? " none" : nodes);
    line(text, "  interval  {}", step.interval_ms() == 0 ? "none, versions on request" : interval_text(step));
    if (step.next_unix_ms() > 0)
      line(text, "  next      {}, {}", local_time(step.next_unix_ms() * kNsInMs), next_text(step, now));
    if (step.phase() != net::NONE)
      line(text, "  now       {}, for {}", phase_text(step),
           human_time(since(step.round_began_unix_ms(), now) * kNsInMs));
  }
  if (const std::string error = error_text(step); !error.empty()) line(text, "  last      {}", error);
  const uint32_t shown = static_cast<uint32_t>(step.versions_size());
  line(text, "  versions  {}{}", step.versions_total(),
       shown > 0 && shown < step.versions_total() ? fmt::format(", the last {} of them:", shown) : "");
  if (shown > 0) text += indented(versions_table(step));
}

std::string key_text(uint32_t key) { return key == 0 ? "private" : fmt::format("0x{:08x}", key); }

}  // namespace

std::string rough_duration(uint64_t milliseconds) {
  struct Unit {
    uint64_t seconds;
    const char* name;
    uint64_t part;
    const char* part_name;
  };
  constexpr std::array<Unit, 3> kUnits{{{86400, "d", 3600, "h"}, {3600, "h", 60, "min"}, {60, "min", 1, "s"}}};
  const uint64_t seconds = milliseconds / 1000 + (milliseconds % 1000 >= 500 ? 1 : 0);
  for (const Unit& unit : kUnits) {
    if (seconds < unit.seconds) continue;
    const uint64_t rest = seconds % unit.seconds / unit.part;
    const std::string text = fmt::format("{} {}", seconds / unit.seconds, unit.name);
    return rest == 0 ? text : fmt::format("{} {} {}", text, rest, unit.part_name);
  }
  return fmt::format("{} s", seconds);
}

std::string phase_text(const net::StepStatus& step) {
  switch (step.phase()) {
    case net::NONE:
      return "idle";
    case net::PREPARE:
      return "preparing";
    case net::STOP:
      return "stopping";
    case net::COLLECT:
      return "collecting";
    case net::WRITE:
      return "writing";
    case net::COMMIT:
      return step.nodes_expected() <= 1 ? "under way" : "committing";
    case net::FINISH:
      return "finishing";
    default:
      return "?";
  }
}

std::string steps_table(const net::Reply& reply, uint64_t now_unix_ms) {
  Table table({"STEP", "USER", "STATE", ">NODES", ">INTERVAL", ">VERSIONS", "LAST", "NEXT", "NOW"});
  for (const net::StepStatus& step : reply.steps()) {
    const std::string nodes = step.running() ? fmt::format("{}/{}", step.nodes_size(), step.nodes_expected()) : "-";
    const std::string last = step.versions_size() > 0 ? local_time(step.versions(0).numbers().taken_unix_ns()) : "-";
    const std::string now = step.phase() != net::NONE ? phase_text(step) : error_text(step);
    table.add({job_step_text(step.job(), step.step()), user_name(step.uid()), state_text(step), nodes,
               interval_text(step), std::to_string(step.versions_total()), last, next_text(step, now_unix_ms),
               now.empty() ? "-" : printable(now)});
  }
  return table.text();
}

std::string steps_text(const net::Reply& reply, uint64_t now_unix_ms) {
  std::string text;
  for (const net::StepStatus& step : reply.steps()) {
    if (!text.empty()) text += "\n";
    append_step(text, step, now_unix_ms);
  }
  return text;
}

std::string version_line(const net::VersionRecord& version) {
  const net::VersionNumbers& numbers = version.numbers();
  return fmt::format("version {}: {}, {}, stopped {}, {}", numbers.version(), counted(numbers.pages(), "page"),
                     human_bytes(numbers.bytes()), human_time(numbers.stop_ns()), human_time(numbers.total_ns()));
}

std::string ipc_table(const net::Reply& reply) {
  Table table({"STEP", "NODE", "OWNER", "KIND", "KEY", ">ID", ">SIZE", ">ATTACHED", "MODE", ">CREATOR", "SINCE",
               "ATTACHED BY"});
  for (const net::NodeIpc& node : reply.ipc()) {
    for (const net::IpcObject& object : node.objects()) {
      const bool segment = object.kind() == "shm";
      std::string pids;
      for (const uint32_t pid : object.attached_pids()) pids += fmt::format("{}{}", pids.empty() ? "" : " ", pid);
      table.add(
          {job_step_text(node.job(), node.step()), printable(node.node()), user_name(node.uid()),
           printable(object.kind()), key_text(object.key()), std::to_string(object.id()), human_bytes(object.bytes()),
           segment ? std::to_string(object.attached()) : "-", fmt::format("{:03o}", object.mode() & 0777),
           object.creator_pid() == 0 ? "-" : std::to_string(object.creator_pid()),
           object.created_unix() <= 0 ? "-" : local_time(static_cast<uint64_t>(object.created_unix()) * 1000 * kNsInMs),
           pids.empty() ? "-" : pids});
    }
  }
  return table.text();
}

}  // namespace icp
