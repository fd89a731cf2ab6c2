// SPDX-License-Identifier: GPL-2.0-or-later
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "coordinator/icp/doctor/checks.h"

namespace icp::doctor {

namespace {

bool has(const Kernel& kernel, TrackerKind kind) {
  return std::find(kernel.trackers.begin(), kernel.trackers.end(), kind) != kernel.trackers.end();
}

void check_release(const Host& host, Diagnosis& diagnosis) {
  unsigned major = 0, minor = 0;
  std::sscanf(host.kernel.release.c_str(), "%u.%u", &major, &minor);
  const std::string text = fmt::format("Linux {} on {}", host.kernel.release, host.kernel.machine);
  if (host.kernel.machine != "x86_64") {
    diagnosis.error("kernel.release", text, "only x86_64 is supported");
  } else if (major < 5 || (major == 5 && minor < 9)) {
    diagnosis.error("kernel.release", text + " has no CAP_CHECKPOINT_RESTORE", "Linux 5.9 or newer is needed");
  } else {
    diagnosis.ok("kernel.release", text);
  }
}

void check_built_in(const Host& host, Diagnosis& diagnosis) {
  for (const char* const file : {"/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/shm_next_id"}) {
    if (host.exists(file)) continue;
    return diagnosis.error("kernel.checkpoint_restore", fmt::format("{} is not there", file),
                           "a kernel with CONFIG_CHECKPOINT_RESTORE is needed; distributions' have it");
  }
  diagnosis.ok("kernel.checkpoint_restore", "process and segment numbers can be chosen");
}

void check_namespaces(const Host& host, Diagnosis& diagnosis) {
  for (const char* const name : {"pid", "ipc", "mnt"}) {
    if (!host.exists(fmt::format("/proc/self/ns/{}", name)))
      return diagnosis.error("kernel.namespaces", fmt::format("there are no {} namespaces", name),
                             "no restart without them: another kernel is needed");
    const std::string limit = fmt::format("/proc/sys/user/max_{}_namespaces", name);
    if (host.word(limit) == "0")
      return diagnosis.error("kernel.namespaces", fmt::format("user.max_{}_namespaces is 0", name),
                             fmt::format("no restart without them: sysctl user.max_{}_namespaces=1024", name));
  }
  diagnosis.ok("kernel.namespaces", host.exists("/proc/self/ns/time") ? "PID, IPC, mount and time"
                                                                      : "PID, IPC and mount, no time namespaces");
}

void check_ptrace(const Host& host, Diagnosis& diagnosis) {
  const std::string scope = host.word("/proc/sys/kernel/yama/ptrace_scope");
  if (scope == "2" || scope == "3")
    return diagnosis.error("kernel.ptrace", fmt::format("kernel.yama.ptrace_scope is {}: nothing can be saved", scope),
                           scope == "3" ? "set it to 1 or 0 for the next boot: 3 cannot be taken back"
                                        : "sysctl kernel.yama.ptrace_scope=1, or 0");
  diagnosis.ok("kernel.ptrace", scope.empty() ? "no restriction by Yama" : "kernel.yama.ptrace_scope is " + scope);
}

void check_tracking(const Host& host, Diagnosis& diagnosis) {
  const Kernel& kernel = host.kernel;
  if (has(kernel, TrackerKind::kKernelModule))
    return diagnosis.ok("kernel.tracking", "written pages are found by the kernel module");
  if (has(kernel, TrackerKind::kUserfaultfd))
    return diagnosis.ok("kernel.tracking", "written pages are found by userfaultfd and PAGEMAP_SCAN");
  if (host.exists("/sys/module/icp_track"))
    return diagnosis.ok("kernel.tracking", "the kernel module is loaded; jobs use it (root sees that it works)");
  if (has(kernel, TrackerKind::kSoftDirty))
    return diagnosis.ok("kernel.tracking", "written pages are found by soft-dirty bits");
  diagnosis.warning("kernel.tracking", "written pages cannot be found: every version reads all memory",
                    "load the kernel module (package slurm-icp-dkms), or run Linux 6.7 or newer");
}

void check_module(const Host& host, Diagnosis& diagnosis) {
  const std::string version = host.word("/sys/module/icp_track/version");
  if (host.exists("/sys/module/icp_track")) {
    if (!version.empty() && version != ICP_VERSION)
      return diagnosis.warning("kernel.module",
                               fmt::format("icp_track {} is loaded, this is slurm-icp {}", version, ICP_VERSION),
                               "when no job is tracked: modprobe -r icp_track && modprobe icp_track");
    return diagnosis.ok("kernel.module", "icp_track is loaded");
  }
  if (!host.matching("/usr/src/icp_track-*").empty() && !has(host.kernel, TrackerKind::kKernelModule))
    return diagnosis.warning("kernel.module", "icp_track is installed (DKMS) and not loaded",
                             "modprobe icp_track; if that fails: dkms status, and the headers of this kernel");
  diagnosis.ok("kernel.module", "icp_track is not installed");
}

void check_io_uring(const Host& host, Diagnosis& diagnosis) {
  const std::string disabled = host.word("/proc/sys/kernel/io_uring_disabled");
  if (disabled == "2")
    return diagnosis.warning("kernel.io_uring",
                             "kernel.io_uring_disabled is 2: an agent killed while it reads a TCP "
                             "connection leaves it unusable",
                             "sysctl kernel.io_uring_disabled=1");
  if (disabled.empty() && !host.kernel.io_uring)
    return diagnosis.ok("kernel.io_uring", "none: an agent killed while it reads a TCP connection leaves it unusable");
  diagnosis.ok("kernel.io_uring", disabled == "1" ? "for root (kernel.io_uring_disabled is 1)" : "is there");
}

// What ordinary users can do by themselves: no finding, since many sites want it to be nothing.
void check_users(const Host& host, Diagnosis& diagnosis) {
  std::string why;
  if (!host.exists("/proc/self/ns/user")) why = "there are none";
  if (host.word("/proc/sys/user/max_user_namespaces") == "0") why = "user.max_user_namespaces is 0";
  if (host.word("/proc/sys/kernel/unprivileged_userns_clone") == "0") why = "kernel.unprivileged_userns_clone is 0";
  if (host.word("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1")
    why = "kernel.apparmor_restrict_unprivileged_userns is 1";
  diagnosis.ok("kernel.user_namespaces", why.empty()
                                             ? "ordinary users may make them"
                                             : fmt::format("not for ordinary users ({}): jobs do not need them", why));
  diagnosis.ok("kernel.userfaultfd", host.word("/proc/sys/vm/unprivileged_userfaultfd") == "1"
                                         ? "icp restart --lazy is for everybody"
                                         : "icp restart --lazy is for root (vm.unprivileged_userfaultfd is not 1)");
}

}  // namespace

void check_kernel(const Host& host, Diagnosis& diagnosis) {
  check_release(host, diagnosis);
  check_built_in(host, diagnosis);
  check_namespaces(host, diagnosis);
  check_ptrace(host, diagnosis);
  check_tracking(host, diagnosis);
  check_module(host, diagnosis);
  check_io_uring(host, diagnosis);
  check_users(host, diagnosis);
}

}  // namespace icp::doctor
