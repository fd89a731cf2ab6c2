// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/scheduling.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

constexpr int kIoprioWhoProcess = 1;  // linux/ioprio.h, not in Debian 12's glibc

// linux/sched/types.h, SCHED_ATTR_SIZE_VER0: glibc has no wrapper before 2.41.
struct SchedulingAttributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

}  // namespace

void capture_scheduling(pid_t tid, pb::Thread& state) {
  SchedulingAttributes attributes{};
  attributes.size = sizeof attributes;
  if (::syscall(SYS_sched_getattr, tid, &attributes, sizeof attributes, 0) == 0) {
    state.set_sched_policy(static_cast<int32_t>(attributes.policy));
    state.set_sched_nice(attributes.nice);
    state.set_sched_priority(attributes.priority);
    state.set_sched_flags(attributes.flags);
  }
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (::sched_getaffinity(tid, sizeof cpus, &cpus) == 0) state.set_cpu_mask(&cpus, sizeof cpus);
  if (const long priority = ::syscall(SYS_ioprio_get, kIoprioWhoProcess, tid); priority >= 0)
    state.set_ioprio(static_cast<int32_t>(priority));
}

void restore_scheduling(pid_t tid, const pb::Thread& state) {
  SchedulingAttributes attributes{};
  attributes.size = sizeof attributes;
  attributes.policy = static_cast<uint32_t>(state.sched_policy());
  attributes.flags = state.sched_flags();
  attributes.nice = state.sched_nice();
  attributes.priority = state.sched_priority();
  ::syscall(SYS_sched_setattr, tid, &attributes, 0);

  cpu_set_t allowed, saved;
  CPU_ZERO(&saved);
  std::memcpy(&saved, state.cpu_mask().data(), std::min(state.cpu_mask().size(), sizeof saved));
  if (::sched_getaffinity(tid, sizeof allowed, &allowed) == 0 && CPU_COUNT(&saved) > 0) {
    cpu_set_t both;
    CPU_AND(&both, &allowed, &saved);
    if (CPU_EQUAL(&both, &saved)) ::sched_setaffinity(tid, sizeof saved, &saved);
  }
  if (state.ioprio() > 0) ::syscall(SYS_ioprio_set, kIoprioWhoProcess, tid, state.ioprio());
  if (state.timer_slack_ns() > 0) std::ofstream(fmt::format("/proc/{}/timerslack_ns", tid)) << state.timer_slack_ns();
}

}  // namespace icp
