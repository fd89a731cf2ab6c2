// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/ipc_report.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"
#include "engine/broker/broker.h"
#include "engine/sysv/ipc_list.h"
#include "engine/sysv/ipc_namespace.h"

namespace icp {
namespace {

constexpr std::chrono::seconds kLookEvery{5};

// Processes in an IPC namespace. Who ends meanwhile is left out.
std::vector<pid_t> processes_in(uint64_t inode) {
  std::vector<pid_t> found;
  for (const pid_t pid : list_processes()) {
    struct stat info {};
    if (stat(fmt::format("/proc/{}/ns/ipc", pid).c_str(), &info) == 0 && info.st_ino == inode) found.push_back(pid);
  }
  return found;
}

// Segment's id -> the processes that map it.
std::map<int, std::set<pid_t>> attached_by(const std::vector<pid_t>& processes) {
  std::map<int, std::set<pid_t>> found;
  for (const pid_t pid : processes) {
    try {
      for (const MapsEntry& entry : MapsEntry::read(pid))
        if (entry.path.starts_with("/SYSV")) found[static_cast<int>(entry.ino)].insert(pid);
    } catch (const Error& error) {
      spdlog::debug("process {}: {}", pid, error.what());
    }
  }
  return found;
}

}  // namespace

net::IpcObjects ipc_objects_of(pid_t process) {
  const UniqueFd ns = open_ipc_namespace(process);
  const std::vector<IpcObject> objects = broker().open_ipc(process)->list();
  std::map<int, std::set<pid_t>> attached;
  if (std::any_of(objects.begin(), objects.end(), [](const IpcObject& object) { return object.attached > 0; }))
    attached = attached_by(processes_in(ipc_namespace_inode(ns.get())));

  net::IpcObjects report;
  for (const IpcObject& object : objects) {
    if (report.objects_size() >= kMostIpcObjects) break;
    net::IpcObject& part = *report.add_objects();
    part.set_kind(std::string(to_string(object.kind)));
    part.set_key(static_cast<uint32_t>(object.key));
    part.set_id(object.id);
    part.set_bytes(object.kind == IpcKind::kSem ? 0 : object.size);
    part.set_creator_pid(static_cast<uint32_t>(std::max(object.creator, 0)));
    part.set_created_unix(object.create_time);
    part.set_attached(static_cast<uint32_t>(std::min<uint64_t>(object.attached, UINT32_MAX)));
    part.set_mode(object.mode);
    if (object.kind != IpcKind::kShm) continue;
    for (const pid_t pid : attached[object.id])
      if (part.attached_pids_size() < kMostIpcProcesses) part.add_attached_pids(static_cast<uint32_t>(pid));
  }
  return report;
}

IpcReport::IpcReport(boost::asio::io_context& io, std::function<pid_t()> process,
                     std::function<void(const net::ToCoordinator&)> say)
    : timer_(io), process_(std::move(process)), say_(std::move(say)) {}

void IpcReport::begin_anew() {
  said_.clear();
  look();
}

void IpcReport::look() {
  try {
    if (const pid_t pid = process_(); pid > 0) {
      net::ToCoordinator message;
      *message.mutable_ipc() = ipc_objects_of(pid);
      std::string text = message.ipc().SerializeAsString();
      // An empty one is no news to who has not heard of any.
      if (text != said_) say_(message);
      said_ = std::move(text);
    }
  } catch (const Error& error) {
    spdlog::debug("System V objects: {}", error.what());
  }
  timer_.expires_after(kLookEvery);
  timer_.async_wait([this](boost::system::error_code error) {
    if (!error) look();
  });
}

}  // namespace icp
