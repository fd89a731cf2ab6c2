// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/image_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <algorithm>
#include <iterator>
#include <map>

#include "coordinator/icp/format.h"
#include "coordinator/icp/open_file_text.h"
#include "coordinator/icp/users.h"

namespace icp {

namespace {

template <typename... Args>
void line(std::string& text, fmt::format_string<Args...> format, Args&&... args) {
  text += printable(fmt::format(format, std::forward<Args>(args)...)) + "\n";
}

template <typename Repeated>
uint64_t size_of(const Repeated& repeated) {
  return static_cast<uint64_t>(repeated.size());
}

std::string key_text(int32_t key) {
  return key == 0 ? "private" : fmt::format("key 0x{:08x}", static_cast<uint32_t>(key));
}

std::string head(const char* kind, const pb::IpcPerm& perm) {
  return fmt::format("{}, {}, id {}, mode {:03o}, owner {}", kind, key_text(perm.key()), perm.id(), perm.mode() & 0777,
                     user_name(perm.uid()));
}

void append_manifest(std::string& text, const pb::Manifest& manifest) {
  const pb::VersionStats& stats = manifest.stats();
  const std::string parent = manifest.parent() == 0 ? "" : fmt::format(" after version {}", manifest.parent());
  line(text, "version    {}, {}{}, taken {} by icp {}", manifest.version(), stats.full() ? "full" : "incremental",
       parent, local_time(manifest.taken_unix_ns()), manifest.icp_release());
  line(text, "host       {}, Linux {}, {}", manifest.host().node(), manifest.host().kernel(),
       manifest.host().machine());
  const pb::JobFacts& job = manifest.job();
  if (job.job_id() != 0)
    line(text, "step       {}.{} on node {}, restarted {}", job.job_id(), job.step_id(), job.node(),
         counted(job.restart_count(), "time"));
  if (!job.command().empty()) line(text, "command    {}", job.command());
  line(text, "stored     {} of {}, {}", with_commas(stats.pages_written()), counted(stats.pages_total(), "page"),
       human_bytes(stats.bytes_written()));
  line(text, "time       stopped {}, {} in all, tracker {}", human_time(stats.stop_ns()), human_time(stats.total_ns()),
       stats.tracker());
  line(text, "needs      version{} {}", manifest.needs_size() == 1 ? "" : "s", fmt::join(manifest.needs(), ", "));
}

void append_memory(std::string& text, const pb::Process& process, bool detailed) {
  std::map<std::string, uint64_t> kinds;
  for (const pb::Mapping& mapping : process.memory().mappings())
    if (mapping.end() > mapping.start()) kinds[kind_of(mapping)] += mapping.end() - mapping.start();
  std::string split;
  for (const auto& [kind, bytes] : kinds) split += fmt::format(", {} {}", kind, human_bytes(bytes));
  line(text, "  memory     {} in {}{}", human_bytes(mapped_bytes(process)),
       counted(size_of(process.memory().mappings()), "mapping"), split);
  if (!detailed) return;
  for (const pb::Mapping& mapping : process.memory().mappings()) {
    const std::string of = mapping.object() != 0 ? fmt::format("object {}", mapping.object()) : mapping.file().path();
    line(text, "    {:012x}-{:012x} {}{}{}{} {} {}", mapping.start(), mapping.end(),
         (mapping.prot() & PROT_READ) != 0 ? 'r' : '-', (mapping.prot() & PROT_WRITE) != 0 ? 'w' : '-',
         (mapping.prot() & PROT_EXEC) != 0 ? 'x' : '-', mapping.shared() ? 's' : 'p', kind_of(mapping), of);
  }
}

void append_process(std::string& text, const pb::Process& process, const std::map<uint32_t, const pb::OpenFile*>& files,
                    bool detailed) {
  text += "\n";
  line(text, "process {} ({}), parent {}, group {}, session {}, {}, user {}", process.pid(), process.comm(),
       process.ppid(), process.pgid(), process.sid(), state_of(process), user_name(process.credentials().uid()));
  if (process.state() == pb::Process::ZOMBIE) return;
  line(text, "  command    {}", fmt::join(process.argv(), " "));
  line(text, "  directory  {}", process.cwd());
  std::string threads;
  for (const pb::Thread& thread : process.threads()) threads += fmt::format(", {} {}", thread.tid(), thread.comm());
  line(text, "  threads    {}{}", process.threads_size(), threads.empty() ? "" : ": " + threads.substr(2));
  append_memory(text, process, detailed);
  for (const pb::FileDescriptor& fd : process.fds()) {
    const auto file = files.find(fd.file());
    line(text, "  {:>9}  {}", fmt::format("fd {}", fd.fd()),
         file == files.end() ? "a file that the image does not hold" : describe(*file->second));
  }
}

void append_sysv(std::string& text, const pb::SysvIpc& sysv) {
  if (sysv.segments_size() + sysv.semaphores_size() + sysv.queues_size() == 0) return;
  text += "\nSystem V objects\n";
  for (const pb::ShmSegment& segment : sysv.segments())
    line(text, "  {}, {}{}", head("segment", segment.perm()), human_bytes(segment.size()),
         segment.removed() ? ", marked for removal" : "");
  for (const pb::SemaphoreSet& set : sysv.semaphores())
    line(text, "  {}, values {}", head("semaphores", set.perm()), fmt::join(set.values(), " "));
  for (const pb::MessageQueue& queue : sysv.queues())
    line(text, "  {}, {}", head("message queue", queue.perm()), counted(size_of(queue.messages()), "message"));
}

}  // namespace

std::string version_table(const std::vector<VersionInfo>& versions) {
  Table table({">VERSION", "TAKEN", ">PROCESSES", ">PAGES", ">BYTES", ">STOPPED", ">TOTAL", "KIND", "TRACKER"});
  std::string damaged;
  for (const VersionInfo& info : versions) {
    if (!info.error.empty()) {
      line(damaged, "version {} cannot be read: {}", info.version, info.error);
      continue;
    }
    const pb::VersionStats& stats = info.manifest.stats();
    table.add({std::to_string(info.version), local_time(info.manifest.taken_unix_ns()), with_commas(stats.processes()),
               with_commas(stats.pages_written()), human_bytes(stats.bytes_written()), human_time(stats.stop_ns()),
               human_time(stats.total_ns()), stats.full() ? "full" : "incremental", printable(stats.tracker())});
  }
  return table.text() + damaged;
}

std::string image_text(const pb::Manifest& manifest, const pb::Capsule& capsule, bool detailed) {
  std::string text;
  append_manifest(text, manifest);
  std::map<uint32_t, const pb::OpenFile*> files;
  for (const pb::OpenFile& file : capsule.files()) files[file.id()] = &file;
  for (const pb::Process& process : capsule.processes()) append_process(text, process, files, detailed);
  if (capsule.objects_size() > 0) text += "\nshared memory\n";
  for (const pb::MemoryObject& object : capsule.objects())
    line(text, "  object {}: {}, {}{}{}", object.id(), kind_of(object), human_bytes(object.size()),
         object.path().empty() ? "" : ", ", object.path());
  append_sysv(text, capsule.sysv());
  return text;
}

}  // namespace icp
