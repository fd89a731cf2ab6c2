// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/scheduling.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

constexpr uint32_t kDeadlinePolicy = 6;  // SCHED_DEADLINE, not in every glibc
constexpr int kIoprioWhoProcess = 1;     // linux/ioprio.h, not in Debian 12's glibc

// linux/sched/types.h, SCHED_ATTR_SIZE_VER0: glibc has no wrapper before 2.41.
struct SchedulingAttributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

cpu_set_t set_from(const std::string& bytes) {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::memcpy(&set, bytes.data(), std::min(bytes.size(), sizeof set));
  return set;
}

bool is_within(const cpu_set_t& some, const cpu_set_t& all) {
  cpu_set_t both;
  CPU_AND(&both, &some, &all);
  return CPU_EQUAL(&both, &some);
}

}  // namespace

std::map<uint32_t, int> ranks_of(const pb::Capsule& capsule, const std::function<bool(int rank)>& counts) {
  std::map<uint32_t, int> ranks;
  for (const pb::Task& task : capsule.tasks())
    if (counts(task.rank())) ranks[task.pid()] = task.rank();
  if (ranks.empty()) return ranks;
  const int first = ranks.begin()->second;
  for (const pb::Process& process : capsule.processes()) {  // parents before children
    const auto parent = ranks.find(process.ppid());
    ranks.try_emplace(process.pid(), parent != ranks.end() ? parent->second : first);
  }
  return ranks;
}

std::map<uint32_t, CpuBinding> bindings_of(const pb::Capsule& capsule, const std::map<int, std::string>& here) {
  std::map<int, CpuBinding> by_rank;
  for (const pb::Task& task : capsule.tasks())
    if (const auto given = here.find(task.rank()); given != here.end())
      by_rank[task.rank()] = {task.cpu_mask(), given->second};
  std::map<uint32_t, CpuBinding> bindings;
  for (const auto& [pid, rank] : ranks_of(capsule, [&](int one) { return by_rank.contains(one); }))
    bindings[pid] = by_rank.at(rank);
  return bindings;
}

cpu_set_t new_affinity(const cpu_set_t& own, const CpuBinding& binding) {
  const cpu_set_t here = set_from(binding.here), saved = set_from(binding.saved);
  if (CPU_EQUAL(&own, &saved)) return here;
  if (!is_within(own, saved)) return CPU_COUNT(&own) > 0 && is_within(own, here) ? own : here;
  cpu_set_t chosen;
  CPU_ZERO(&chosen);
  int to = -1;
  for (int from = 0; from < CPU_SETSIZE; ++from) {
    if (!CPU_ISSET(from, &saved)) continue;
    while (++to < CPU_SETSIZE && !CPU_ISSET(to, &here)) {
    }
    if (to >= CPU_SETSIZE) return here;  // fewer than there were
    if (CPU_ISSET(from, &own)) CPU_SET(to, &chosen);
  }
  return chosen;
}

void capture_scheduling(pid_t tid, pb::Thread& state) {
  SchedulingAttributes attributes{};
  attributes.size = sizeof attributes;
  if (::syscall(SYS_sched_getattr, tid, &attributes, sizeof attributes, 0) == 0) {
    state.set_sched_policy(static_cast<int32_t>(attributes.policy));
    state.set_sched_nice(attributes.nice);
    state.set_sched_priority(attributes.priority);
    state.set_sched_flags(attributes.flags);
    if (attributes.policy == kDeadlinePolicy) {  // of others the kernel tells the slice, set or not
      state.set_sched_runtime(attributes.runtime);
      state.set_sched_deadline(attributes.deadline);
      state.set_sched_period(attributes.period);
    }
  }
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (::sched_getaffinity(tid, sizeof cpus, &cpus) == 0) state.set_cpu_mask(&cpus, sizeof cpus);
  if (const long priority = ::syscall(SYS_ioprio_get, kIoprioWhoProcess, tid); priority >= 0)
    state.set_ioprio(static_cast<int32_t>(priority));
}

void restore_scheduling(pid_t tid, const pb::Thread& state, const CpuBinding* binding) {
  SchedulingAttributes attributes{};
  attributes.size = sizeof attributes;
  attributes.policy = static_cast<uint32_t>(state.sched_policy());
  attributes.flags = state.sched_flags();
  attributes.nice = state.sched_nice();
  attributes.priority = state.sched_priority();
  attributes.runtime = state.sched_runtime();
  attributes.deadline = state.sched_deadline();
  attributes.period = state.sched_period();
  // SCHED_IDLE keeps the nice value of before.
  if (state.sched_policy() == SCHED_IDLE) ::setpriority(PRIO_PROCESS, static_cast<id_t>(tid), state.sched_nice());
  ::syscall(SYS_sched_setattr, tid, &attributes, 0);

  const cpu_set_t saved = set_from(state.cpu_mask());
  cpu_set_t allowed;
  if (binding != nullptr && !binding->here.empty()) {
    const cpu_set_t chosen = new_affinity(saved, *binding);
    ::sched_setaffinity(tid, sizeof chosen, &chosen);
  } else if (::sched_getaffinity(tid, sizeof allowed, &allowed) == 0 && CPU_COUNT(&saved) > 0 &&
             is_within(saved, allowed)) {
    ::sched_setaffinity(tid, sizeof saved, &saved);
  }
  if (state.ioprio() > 0) ::syscall(SYS_ioprio_set, kIoprioWhoProcess, tid, state.ioprio());
  if (state.timer_slack_ns() > 0) std::ofstream(fmt::format("/proc/{}/timerslack_ns", tid)) << state.timer_slack_ns();
}

}  // namespace icp
