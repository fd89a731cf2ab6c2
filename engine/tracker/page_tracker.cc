// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/tracker/page_tracker.h"

#include "engine/base/error.h"
#include "engine/trace/remote_process.h"
#include "engine/tracker/everything_tracker.h"
#include "engine/tracker/kernel_module_tracker.h"
#include "engine/tracker/soft_dirty_tracker.h"
#include "engine/tracker/userfaultfd_tracker.h"

namespace icp {
namespace {

bool offered(TrackerKind kind) {
  for (const TrackerKind one : available_trackers()) {
    if (one == kind) return true;
  }
  return false;
}

// Null when this process cannot have such a tracker.
std::unique_ptr<PageTracker> try_make(TrackerKind kind, RemoteProcess& process, bool keep) {
  switch (kind) {
    case TrackerKind::kKernelModule:
      return KernelModuleTracker::make(process.pid(), keep);
    case TrackerKind::kUserfaultfd:
      return UserfaultfdTracker::make(process);
    case TrackerKind::kSoftDirty:
      return std::make_unique<SoftDirtyTracker>(process.pid());
    case TrackerKind::kAuto:
    case TrackerKind::kEverything:
      return std::make_unique<EverythingTracker>(process.pid());
  }
  return nullptr;
}

}  // namespace

std::vector<TrackerKind> available_trackers() {
  static const std::vector<TrackerKind> trackers = [] {
    std::vector<TrackerKind> found;
    if (KernelModuleTracker::available()) found.push_back(TrackerKind::kKernelModule);
    if (UserfaultfdTracker::available()) found.push_back(TrackerKind::kUserfaultfd);
    if (SoftDirtyTracker::available()) found.push_back(TrackerKind::kSoftDirty);
    found.push_back(TrackerKind::kEverything);
    return found;
  }();
  return trackers;
}

std::string_view to_string(TrackerKind kind) {
  switch (kind) {
    case TrackerKind::kKernelModule:
      return "kernel-module";
    case TrackerKind::kUserfaultfd:
      return "userfaultfd";
    case TrackerKind::kSoftDirty:
      return "soft-dirty";
    case TrackerKind::kEverything:
      return "everything";
    case TrackerKind::kAuto:
      break;
  }
  return "auto";
}

TrackerKind parse_tracker(std::string_view name) {
  for (const TrackerKind kind : {TrackerKind::kAuto, TrackerKind::kKernelModule, TrackerKind::kUserfaultfd,
                                 TrackerKind::kSoftDirty, TrackerKind::kEverything}) {
    if (name == to_string(kind)) return kind;
  }
  throw_error(ErrorKind::kUsage, "unknown tracker '{}': use auto, kernel-module, userfaultfd, soft-dirty or everything",
              name);
}

std::unique_ptr<PageTracker> make_tracker(TrackerKind kind, RemoteProcess& process, bool keep) {
  if (kind != TrackerKind::kAuto) {
    std::unique_ptr<PageTracker> tracker = offered(kind) ? try_make(kind, process, keep) : nullptr;
    if (!tracker) {
      throw_error(ErrorKind::kRefused, "this kernel cannot track process {} with {}", process.pid(), to_string(kind));
    }
    return tracker;
  }
  for (const TrackerKind one : available_trackers()) {
    if (std::unique_ptr<PageTracker> tracker = try_make(one, process, keep)) return tracker;
  }
  return std::make_unique<EverythingTracker>(process.pid());
}

std::unique_ptr<PageTracker> resume_tracker(TrackerKind kind, pid_t pid, const TrackingCookie& cookie) {
  const bool module = kind == TrackerKind::kAuto || kind == TrackerKind::kKernelModule;
  return module ? KernelModuleTracker::resume(pid, cookie) : nullptr;
}

}  // namespace icp
