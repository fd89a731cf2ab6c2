// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/mapping_check.h"

#include <sys/mman.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

constexpr uint32_t kKnownAdvice[] = {MADV_RANDOM,   MADV_SEQUENTIAL, MADV_DONTFORK, MADV_MERGEABLE,
                                     MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_WIPEONFORK};
constexpr size_t kMaxName = 79;            // prctl(2), PR_SET_VMA_ANON_NAME
constexpr uint64_t kLowestAddress = 4096;  // vm.mmap_min_addr decides above that
constexpr uint32_t kProtectionKeys = 16;
constexpr uint64_t kMaxOffset = 1ull << 62;

void check_mapping(const pb::Mapping& mapping, uint64_t lowest) {
  const auto check = [&](bool good, const char* what) {
    if (!good) {
      throw_error(ErrorKind::kImage, "damaged image: {} of the mapping {:x}-{:x}", what, mapping.start(),
                  mapping.end());
    }
  };
  check(mapping.start() % kPageSize == 0 && mapping.end() % kPageSize == 0 && mapping.start() >= lowest &&
            mapping.start() < mapping.end() && mapping.end() <= kUserSpaceEnd,
        "impossible bounds or order");
  check(mapping.prot() <= (PROT_READ | PROT_WRITE | PROT_EXEC), "impossible protection");
  check(mapping.offset() % kPageSize == 0 && mapping.offset() < kMaxOffset, "impossible offset");
  const bool object = mapping.kind() == pb::Mapping::OBJECT || mapping.kind() == pb::Mapping::OBJECT_PRIVATE;
  check((mapping.object() != 0) == object, "object number");
  switch (mapping.kind()) {
    case pb::Mapping::ANONYMOUS:
    case pb::Mapping::FILE_PRIVATE:
    case pb::Mapping::OBJECT_PRIVATE:
    case pb::Mapping::VDSO:
    case pb::Mapping::VVAR:
      check(!mapping.shared(), "kind");
      break;
    case pb::Mapping::OBJECT:
    case pb::Mapping::FILE_READONLY_SHARED:
      check(mapping.shared() && !mapping.growsdown(), "kind");
      break;
    default:
      check(false, "unknown kind");
  }
  check(!mapping.growsdown() || mapping.kind() == pb::Mapping::ANONYMOUS, "direction of growth");
  check(mapping.name().size() <= kMaxName &&
            std::none_of(mapping.name().begin(), mapping.name().end(), [](char c) { return c < 0x20 || c > 0x7e; }),
        "name");
  check(mapping.protection_key() < kProtectionKeys, "protection key");
  for (const uint32_t advice : mapping.advice()) {
    check(std::find(std::begin(kKnownAdvice), std::end(kKnownAdvice), advice) != std::end(kKnownAdvice),
          "unknown advice");
  }
  for (const pb::Guard& guard : mapping.guards()) {
    check(guard.start() % kPageSize == 0 && guard.end() % kPageSize == 0 && guard.start() >= mapping.start() &&
              guard.start() < guard.end() && guard.end() <= mapping.end(),
          "impossible guard");
  }
}

void check_vdso(const pb::AddressSpace& memory) {
  uint64_t vdso = 0, vvar_end = 0;
  for (const pb::Mapping& mapping : memory.mappings()) {
    if (mapping.kind() == pb::Mapping::VDSO) vdso = mapping.start();
    if (mapping.kind() == pb::Mapping::VVAR) vvar_end = mapping.end();
  }
  if (vdso != memory.vdso_start() || memory.vdso_size() > 1 << 20 || memory.vvar_size() > 1 << 20) {
    throw_error(ErrorKind::kImage, "damaged image: impossible place of the vdso");
  }
  if (vdso == 0) return;
  if (vvar_end != vdso || memory.vvar_start() + memory.vvar_size() != vdso) {
    throw_error(ErrorKind::kImage, "the vdso and its data do not lie side by side: this cannot be restored");
  }
}

}  // namespace

bool takes_private_pages(const pb::Mapping& mapping) {
  return mapping.kind() == pb::Mapping::ANONYMOUS || mapping.kind() == pb::Mapping::FILE_PRIVATE ||
         mapping.kind() == pb::Mapping::OBJECT_PRIVATE;
}

void check_mappings(const pb::AddressSpace& memory) {
  uint64_t lowest = kLowestAddress;
  for (const pb::Mapping& mapping : memory.mappings()) {
    check_mapping(mapping, lowest);
    lowest = mapping.end();
  }
  check_vdso(memory);
}

}  // namespace icp
