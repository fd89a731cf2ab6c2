// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/host_facts.h"

#include <cpuid.h>
#include <sys/auxv.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <xxhash.h>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

// XCR0 (Intel SDM, XGETBV): the state components the kernel has switched on; 0 without XSAVE.
uint64_t enabled_xfeatures() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kOsxsave = 1u << 27;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kOsxsave) == 0) return 0;
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

}  // namespace

pb::HostFacts this_host() {
  utsname name{};
  if (::uname(&name) != 0) throw_errno("cannot read the host's name");
  pb::HostFacts facts;
  facts.set_node(name.nodename);
  facts.set_kernel(name.release);
  facts.set_machine(name.machine);
  facts.set_page_size(static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)));
  facts.set_xfeatures(enabled_xfeatures());
  const uint64_t vdso = ::getauxval(AT_SYSINFO_EHDR);
  for (const MapsEntry& entry : MapsEntry::read(::getpid())) {
    if (vdso == 0 || entry.start != vdso) continue;
    facts.set_vdso_bytes(entry.end - entry.start);
    facts.set_vdso_hash(XXH3_64bits(reinterpret_cast<const void*>(vdso), entry.end - entry.start));
  }
  return facts;
}

}  // namespace icp
