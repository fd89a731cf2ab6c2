// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/memory_protection.h"

#include <cpuid.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/memory/mapping_list.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

constexpr uint32_t kKeys = 16;
constexpr long kMseal = 462;  // SYS_mseal, Linux 6.10

// Switched on by the kernel (CPUID.(EAX=7,ECX=0):ECX.OSPKE[bit 4]).
bool processor_has_keys() {
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c >> 4 & 1) != 0;
  }();
  return has;
}

// A page where nothing is mapped: in front of the first mapping, or behind one.
uint64_t find_hole(const std::vector<MapsEntry>& maps) {
  uint64_t end = 0;
  for (const MapsEntry& entry : maps) {
    if (entry.start > end) return end;
    end = std::max(end, entry.end);
  }
  return end;
}

// Memory that may be executed alone has a key of the kernel's choice, which is none of the program's.
bool has_key(const pb::AddressSpace& memory, const pb::Mapping& mapping) {
  return mapping.protection_key() != 0 && (memory.protection_keys() >> mapping.protection_key() & 1) != 0;
}

}  // namespace

void capture_protection_keys(const StoppedProcess& process, CallBatch& calls, pb::Process& state) {
  if (!processor_has_keys()) return;
  const uint64_t hole = find_hole(process.maps);
  for (uint32_t key = 1; key < kKeys; ++key) {
    // do_mprotect_pkey(): EINVAL for a key that has not been given out, before it looks for the mapping.
    calls.call(nullptr, SYS_pkey_mprotect, {hole, kPageSize, PROT_NONE, key}, [&state, key](int64_t result) {
      pb::AddressSpace& memory = *state.mutable_memory();
      if (result == -ENOMEM) memory.set_protection_keys(memory.protection_keys() | 1u << key);
    });
  }
}

void restore_protection_keys(RemoteProcess& remote, const pb::AddressSpace& memory) {
  const uint32_t wanted = memory.protection_keys();
  if (wanted == 0) return;
  uint32_t got = 0;
  for (uint32_t i = 1; i < kKeys && (wanted & ~got) != 0; ++i) {
    const int64_t key = remote.syscall(SYS_pkey_alloc, {0, 0});
    if (key < 0 || key >= kKeys) break;
    got |= 1u << key;
  }
  if ((wanted & ~got) != 0)
    throw Error(ErrorKind::kRefused,
                fmt::format("process {} has protection keys, and cannot have them here", remote.pid()), 0,
                "restart on a node whose processor and kernel have protection keys (pku in /proc/cpuinfo)");
  for (uint32_t key = 1; key < kKeys; ++key)
    if ((got & ~wanted & 1u << key) != 0) remote.call("pkey_free", SYS_pkey_free, {key});
}

void protect_mappings(RemoteProcess& remote, const pb::AddressSpace& memory) {
  for (const pb::Mapping& mapping : memory.mappings()) {
    const uint64_t bytes = mapping.end() - mapping.start();
    if (has_key(memory, mapping))
      remote.call("pkey_mprotect", SYS_pkey_mprotect,
                  {mapping.start(), bytes, mapping.prot(), mapping.protection_key()});
    if (mapping.sealed()) remote.call("mseal", kMseal, {mapping.start(), bytes, 0});
  }
}

}  // namespace icp
