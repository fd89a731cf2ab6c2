// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/memory_settings.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <array>
#include <memory>

#include "engine/base/error.h"

namespace icp {
namespace {

// linux/membarrier.h; commands are bits.
constexpr uint32_t kGetRegistrations = 1 << 9;  // Linux 6.3
constexpr uint32_t kRegisterGlobal = 1 << 2, kRegisterPrivate = 1 << 4, kRegisterSyncCore = 1 << 6,
                   kRegisterRseq = 1 << 8;
constexpr uint32_t kKnown = kRegisterGlobal | kRegisterPrivate | kRegisterSyncCore | kRegisterRseq;
// Where the kernel does not tell. One too many is never noticed; one too few makes liburcu and .NET abort.
constexpr uint32_t kAssumed = kRegisterPrivate | kRegisterSyncCore;

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kWideHole = 1 << 20;         // bytes
constexpr uint64_t kUserEnd = 0x7ffffffff000;   // TASK_SIZE, 4-level page tables
constexpr uint64_t kFixedNoReplace = 0x100000;  // MAP_FIXED_NOREPLACE

constexpr size_t kNodeWords = 16;  // 1024 nodes, the most that a kernel can be built for
constexpr uint64_t kNodeBits = kNodeWords * 64;
struct PolicyAnswer {
  int32_t mode;
  int32_t unused;
  std::array<uint64_t, kNodeWords> nodes;
};

// The middle of the largest hole: far from what anybody maps meanwhile.
uint64_t find_hole(const std::vector<MapsEntry>& maps) {
  uint64_t best = 0, best_bytes = kWideHole, end = kWideHole;
  for (const MapsEntry& entry : maps) {
    if (entry.start >= kUserEnd) break;  // [vsyscall]
    if (entry.start > end && entry.start - end > best_bytes) {
      best_bytes = entry.start - end;
      best = (end + best_bytes / 2) / kPageBytes * kPageBytes;
    }
    end = std::max(end, entry.end);
  }
  return best;
}

// MCL_FUTURE shows in what is mapped next: a page is mapped, looked at, and unmapped.
void probe_future_locks(const StoppedProcess& process, CallBatch& calls, pb::Process& state) {
  const uint64_t hole = find_hole(process.maps);
  if (hole == 0) return;
  const auto locked = std::make_shared<bool>(false);
  calls.call(nullptr, SYS_mmap,
             {hole, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | kFixedNoReplace, ~0ull, 0},
             [locked](int64_t result) { *locked = result == -EAGAIN; });  // more than RLIMIT_MEMLOCK
  calls.call(nullptr, SYS_msync, {hole, kPageBytes, MS_INVALIDATE},
             [locked](int64_t result) { *locked = *locked || result == -EBUSY; });
  calls.ask<uint8_t>(nullptr, SYS_mincore, {hole, kPageBytes, CallBatch::kAnswer}, [locked, &state](uint8_t present) {
    if (!*locked) return;
    const bool on_fault = (present & 1) == 0;
    state.mutable_memory()->set_mlockall_flags(MCL_FUTURE | (on_fault ? MCL_ONFAULT : 0));
  });
  calls.call(nullptr, SYS_munmap, {hole, kPageBytes}, [](int64_t) {});
}

}  // namespace

void capture_memory_settings(const StoppedProcess& process, CallBatch& calls, pb::Process& state) {
  calls.call(nullptr, SYS_membarrier, {kGetRegistrations, 0, 0}, [&state](int64_t result) {
    state.set_membarrier(result < 0 ? kAssumed : static_cast<uint32_t>(result) & kKnown);
  });
  // One that has locked nothing has not asked for what comes.
  if (process.status.locked_kb > 0) probe_future_locks(process, calls, state);
}

void capture_numa_policy(CallBatch& calls, pb::Thread& state) {
  calls.ask<PolicyAnswer>(nullptr, SYS_get_mempolicy,
                          {CallBatch::kAnswer, CallBatch::kAnswer + offsetof(PolicyAnswer, nodes), kNodeBits, 0, 0},
                          [&state](const PolicyAnswer& answer) {
                            if (answer.mode == 0) return;
                            pb::NumaPolicy& policy = *state.mutable_numa();
                            policy.set_mode(static_cast<uint32_t>(answer.mode));
                            for (const uint64_t word : answer.nodes) policy.add_nodes(word);
                          });
}

void restore_membarrier(RemoteProcess& remote, const pb::Process& state) {
  for (const uint32_t command : {kRegisterGlobal, kRegisterPrivate, kRegisterSyncCore, kRegisterRseq}) {
    // A processor or a kernel without it does not matter: whoever asks for it is told so.
    if ((state.membarrier() & command) != 0) remote.syscall(SYS_membarrier, {command, 0, 0});
  }
}

void restore_future_locks(RemoteProcess& remote, const pb::Process& state) {
  const uint32_t flags = state.memory().mlockall_flags() & static_cast<uint32_t>(MCL_FUTURE | MCL_ONFAULT);
  if ((flags & MCL_FUTURE) != 0) remote.call("mlockall(MCL_FUTURE)", SYS_mlockall, {flags});
}

void restore_numa_policy(RemoteProcess& remote, const pb::Thread& state) {
  if (!state.has_numa()) return;
  std::array<uint64_t, kNodeWords> nodes{};
  for (int i = 0; i < state.numa().nodes_size() && i < static_cast<int>(kNodeWords); ++i)
    nodes[static_cast<size_t>(i)] = state.numa().nodes(i);
  remote.reset_scratch();
  // A machine without such nodes has no use for it.
  remote.syscall(SYS_set_mempolicy, {state.numa().mode(), remote.stage_value(nodes).value, kNodeBits + 1});
}

}  // namespace icp
