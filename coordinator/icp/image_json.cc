// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/image_json.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "coordinator/icp/format.h"
#include "coordinator/icp/open_file_text.h"

namespace icp {

using nlohmann::json;

namespace {

json stats_json(const pb::VersionStats& stats) {
  return {{"pages_written", stats.pages_written()},
          {"pages_total", stats.pages_total()},
          {"bytes_written", stats.bytes_written()},
          {"stop_ns", stats.stop_ns()},
          {"total_ns", stats.total_ns()},
          {"processes", stats.processes()},
          {"threads", stats.threads()},
          {"tracker", stats.tracker()},
          {"full", stats.full()}};
}

json manifest_json(const pb::Manifest& manifest) {
  json value = {{"version", manifest.version()},
                {"parent", manifest.parent()},
                {"taken", utc_time(manifest.taken_unix_ns())},
                {"taken_unix_ns", manifest.taken_unix_ns()},
                {"release", manifest.icp_release()},
                {"node", manifest.job().node()},
                {"stats", stats_json(manifest.stats())},
                {"needs", manifest.needs()}};
  const pb::HostFacts& host = manifest.host();
  value["host"] = {{"node", host.node()}, {"kernel", host.kernel()}, {"machine", host.machine()}};
  const pb::JobFacts& job = manifest.job();
  value["job"] = {{"job_id", job.job_id()}, {"step_id", job.step_id()}, {"restart_count", job.restart_count()},
                  {"uid", job.uid()},       {"gid", job.gid()},         {"command", job.command()}};
  value["files"] = json::array();
  for (const pb::FileEntry& file : manifest.files())
    value["files"].push_back({{"name", file.name()}, {"bytes", file.bytes()}});
  return value;
}

json process_json(const pb::Process& process) {
  json value = {{"pid", process.pid()},
                {"ppid", process.ppid()},
                {"pgid", process.pgid()},
                {"sid", process.sid()},
                {"comm", process.comm()},
                {"argv", process.argv()},
                {"state", state_of(process)},
                {"cwd", process.cwd()},
                {"uid", process.credentials().uid()},
                {"gid", process.credentials().gid()}};
  value["threads"] = json::array();
  for (const pb::Thread& thread : process.threads())
    value["threads"].push_back({{"tid", thread.tid()}, {"comm", thread.comm()}});
  value["mappings"] = json::array();
  for (const pb::Mapping& mapping : process.memory().mappings())
    value["mappings"].push_back({{"start", mapping.start()},
                                 {"end", mapping.end()},
                                 {"prot", mapping.prot()},
                                 {"kind", kind_of(mapping)},
                                 {"offset", mapping.offset()},
                                 {"path", mapping.file().path()},
                                 {"object", mapping.object()}});
  value["descriptors"] = json::array();
  for (const pb::FileDescriptor& fd : process.fds())
    value["descriptors"].push_back({{"fd", fd.fd()}, {"file", fd.file()}, {"cloexec", fd.cloexec()}});
  return value;
}

const char* name_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kSystem:
      return "system";
    case ErrorKind::kRefused:
      return "refused";
    case ErrorKind::kBusy:
      return "busy";
    case ErrorKind::kImage:
      return "image";
    case ErrorKind::kPermission:
      return "permission";
    case ErrorKind::kUsage:
      return "usage";
    case ErrorKind::kGone:
      return "gone";
    case ErrorKind::kInternal:
      return "internal";
  }
  return "system";
}

json perm_json(const pb::IpcPerm& perm) {
  return {{"key", perm.key()}, {"id", perm.id()}, {"uid", perm.uid()}, {"gid", perm.gid()}, {"mode", perm.mode()}};
}

json sysv_json(const pb::SysvIpc& sysv) {
  json value = {{"segments", json::array()}, {"semaphores", json::array()}, {"queues", json::array()}};
  for (const pb::ShmSegment& segment : sysv.segments()) {
    json one = perm_json(segment.perm());
    one.update({{"size", segment.size()}, {"removed", segment.removed()}, {"object", segment.object()}});
    value["segments"].push_back(std::move(one));
  }
  for (const pb::SemaphoreSet& set : sysv.semaphores()) {
    json one = perm_json(set.perm());
    one["values"] = set.values();
    value["semaphores"].push_back(std::move(one));
  }
  for (const pb::MessageQueue& queue : sysv.queues()) {
    json one = perm_json(queue.perm());
    one.update({{"messages", queue.messages_size()}, {"max_bytes", queue.max_bytes()}});
    value["queues"].push_back(std::move(one));
  }
  return value;
}

}  // namespace

json version_json(const VersionInfo& info) {
  if (!info.error.empty()) return {{"version", info.version}, {"error", info.error}};
  return manifest_json(info.manifest);
}

json image_json(const pb::Manifest& manifest, const pb::Capsule& capsule) {
  json value = manifest_json(manifest);
  value["tasks"] = json::array();
  for (const pb::Task& task : capsule.tasks()) value["tasks"].push_back({{"rank", task.rank()}, {"pid", task.pid()}});
  value["processes"] = json::array();
  for (const pb::Process& process : capsule.processes()) value["processes"].push_back(process_json(process));
  value["open_files"] = json::array();
  for (const pb::OpenFile& file : capsule.files())
    value["open_files"].push_back({{"id", file.id()},
                                   {"kind", kind_of(file)},
                                   {"path", file.identity().path()},
                                   {"flags", file.flags()},
                                   {"position", file.position()},
                                   {"description", describe(file)}});
  value["memory_objects"] = json::array();
  for (const pb::MemoryObject& object : capsule.objects())
    value["memory_objects"].push_back(
        {{"id", object.id()}, {"kind", kind_of(object)}, {"size", object.size()}, {"path", object.path()}});
  value["sysv"] = sysv_json(capsule.sysv());
  return value;
}

json result_json(const CheckpointResult& result) {
  return {{"version", result.version}, {"stats", stats_json(result.stats)}};
}

json findings_json(const Findings& findings) {
  json value = json::array();
  for (const Finding& finding : findings)
    value.push_back({{"pid", finding.pid},
                     {"command", finding.command},
                     {"where", finding.where},
                     {"what", finding.what},
                     {"hint", finding.hint},
                     {"transient", finding.transient}});
  return {{"findings", std::move(value)}};
}

json error_json(const Error& error) {
  return {{"error",
           {{"kind", name_of(error.kind())},
            {"text", error.what()},
            {"hint", error.hint()},
            {"errno", error.error_number()}}}};
}

}  // namespace icp
