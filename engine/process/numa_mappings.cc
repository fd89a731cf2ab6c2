// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/numa_mappings.h"

#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <map>
#include <sstream>
#include <string>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr uint64_t kOfAddress = 1 << 1;  // MPOL_F_ADDR of linux/mempolicy.h
constexpr size_t kNodeWords = 16;        // 1024 nodes, the most that a kernel can be built for
constexpr size_t kMostAsked = 128;       // mappings: the answers lie on the thread's stack

struct PolicyAnswer {
  int32_t mode;
  int32_t unused;
  std::array<uint64_t, kNodeWords> nodes;
};

struct Policies {
  uint64_t start_time = 0;            // of the process, ticks since boot
  std::map<uint64_t, bool> may_have;  // by the first address of a mapping
  std::map<uint64_t, pb::NumaPolicy> found;
};

std::map<pid_t, Policies>& policies() {
  static std::map<pid_t, Policies> all;
  return all;
}

}  // namespace

void note_numa_mappings(const ProcessRef& process) {
  Policies noted;
  noted.start_time = process.start_time;
  bool any = false;
  std::string text;
  try {
    text = read_proc(process.pid, "numa_maps");
  } catch (const Error&) {
    // A kernel without NUMA, or the process has ended.
  }
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.find(' ');
    if (space == std::string::npos) continue;
    const bool may_have = line.compare(space + 1, 8, "default ") != 0;
    noted.may_have[std::strtoull(line.c_str(), nullptr, 16)] = may_have;
    any = any || may_have;
  }
  if (any)
    policies()[process.pid] = std::move(noted);
  else
    policies().erase(process.pid);
}

void capture_numa_mappings(const StoppedProcess& process, CallBatch& calls) {
  const auto known = policies().find(process.ref.pid);
  if (known == policies().end()) return;
  Policies& noted = known->second;
  noted.found.clear();
  if (noted.start_time != process.ref.start_time) return;
  size_t asked = 0;
  for (const MapsEntry& entry : process.maps) {
    // The mapping may be a part of one that was looked at, or new.
    const auto after = noted.may_have.upper_bound(entry.start);
    if (after == noted.may_have.begin() || !std::prev(after)->second || ++asked > kMostAsked) continue;
    calls.ask<PolicyAnswer>(nullptr, SYS_get_mempolicy,
                            {CallBatch::kAnswer, CallBatch::kAnswer + offsetof(PolicyAnswer, nodes), kNodeWords * 64,
                             entry.start, kOfAddress},
                            [&noted, start = entry.start](const PolicyAnswer& answer) {
                              if (answer.mode == 0) return;
                              pb::NumaPolicy& policy = noted.found[start];
                              policy.set_mode(static_cast<uint32_t>(answer.mode));
                              for (const uint64_t word : answer.nodes) policy.add_nodes(word);
                            });
  }
}

const pb::NumaPolicy* numa_policy_of(pid_t pid, uint64_t start) {
  const auto known = policies().find(pid);
  if (known == policies().end()) return nullptr;
  const auto found = known->second.found.find(start);
  return found == known->second.found.end() ? nullptr : &found->second;
}

void restore_numa_policy(RemoteProcess& remote, const pb::Mapping& mapping) {
  if (!mapping.has_numa()) return;
  std::array<uint64_t, kNodeWords> nodes{};
  std::copy_n(mapping.numa().nodes().begin(),
              std::min<size_t>(static_cast<size_t>(mapping.numa().nodes_size()), kNodeWords), nodes.begin());
  remote.reset_scratch();
  remote.syscall(SYS_mbind, {mapping.start(), mapping.end() - mapping.start(), mapping.numa().mode(),
                             remote.stage_value(nodes).value, kNodeWords * 64 + 1, 0});
}

}  // namespace icp
