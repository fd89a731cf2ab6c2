// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/address_space_restore.h"

#include <asm/prctl.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/memory/lazy_fill.h"
#include "engine/memory/mapping_check.h"
#include "engine/memory/memory_protection.h"
#include "engine/memory/mm_layout.h"
#include "engine/memory/page_ranges.h"
#include "engine/memory/shared_pages.h"
#include "engine/process/numa_mappings.h"

namespace icp {
namespace {

constexpr uint64_t kScratchBytes = 256 << 10;
constexpr uint64_t kTrampolineBytes = kPageSize + kScratchBytes;
// Kept free around the trampoline: a mapping that grows down wants 256 pages below itself (mm/mmap.c, stack_guard_gap).
constexpr uint64_t kMargin = 4 << 20;
constexpr uint64_t kSearchFrom = 1ull << 32;  // above where programs of fixed address and their heaps lie
constexpr uint64_t kMadvGuardInstall = 102;   // Linux 6.13
constexpr uint64_t kMapDroppable = 8;         // MAP_DROPPABLE, Linux 6.11: a type, as MAP_PRIVATE is

constexpr uint64_t kAddressEnd = 1ull << 48;
constexpr uint64_t kWorthWaiting = 1 << 20;  // bytes; less is there sooner than it could be arranged for

// Memory that a userfaultfd can stand in for without anybody noticing: private, anonymous, and with nothing that the
// kernel would do to its pages by itself.
bool can_come_later(const pb::Mapping& mapping) {
  const bool plain = mapping.kind() == pb::Mapping::ANONYMOUS && !mapping.shared() && !mapping.growsdown() &&
                     !mapping.locked() && !mapping.locked_on_fault() && mapping.guards().empty();
  return plain && mapping.end() - mapping.start() >= kWorthWaiting &&
         std::all_of(mapping.advice().begin(), mapping.advice().end(), [](uint32_t advice) {
           return advice == MADV_HUGEPAGE || advice == MADV_NOHUGEPAGE || advice == MADV_DONTDUMP;
         });
}

bool huge_pages_always() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string modes;
  return std::getline(file, modes) && modes.find("[always]") != std::string::npos;
}

// Huge pages come by writing to memory, not by UFFDIO_COPY.
bool wants_huge_pages(const pb::Mapping& mapping, bool always) {
  const auto has = [&mapping](uint32_t advice) {
    return std::find(mapping.advice().begin(), mapping.advice().end(), advice) != mapping.advice().end();
  };
  return has(MADV_HUGEPAGE) || (always && !has(MADV_NOHUGEPAGE));
}

// Where nothing lies, now or in the new layout.
uint64_t find_hole(pid_t pid, const pb::AddressSpace& memory) {
  std::vector<Range> taken;
  for (const MapsEntry& entry : MapsEntry::read(pid)) taken.push_back({entry.start, entry.end});
  for (const pb::Mapping& mapping : memory.mappings()) taken.push_back({mapping.start(), mapping.end()});
  normalise(taken);
  uint64_t at = kSearchFrom;
  for (const Range& range : taken) {
    if (range.end <= at) continue;
    if (range.start > at && range.start - at >= kTrampolineBytes + 2 * kMargin) break;
    at = range.end;
  }
  if (at + kTrampolineBytes + 2 * kMargin > kUserSpaceEnd) {
    throw_error(ErrorKind::kImage, "the image leaves no room in the address space to restore it");
  }
  return at + kMargin;
}

}  // namespace

AddressSpaceRestore::AddressSpaceRestore(RemoteProcess& remote, const pb::AddressSpace& memory,
                                         const ObjectRestore& objects, MappedSources& sources,
                                         const InheritedPages* inherited)
    : remote_(remote), memory_(memory), objects_(objects), sources_(sources), inherited_(inherited) {}

MemoryRestore::Trampoline AddressSpaceRestore::make_trampoline() {
  const uint64_t at = find_hole(remote_.pid(), memory_);
  remote_.call(
      "mmap of the trampoline", SYS_mmap,
      {at, kTrampolineBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, ~0ull, 0});
  // syscall; int3, and traps all over the rest of the page.
  std::array<std::byte, kPageSize> code;
  code.fill(std::byte{0xcc});
  code[0] = std::byte{0x0f};
  code[1] = std::byte{0x05};
  remote_.write({at}, code);
  remote_.call("mprotect of the trampoline", SYS_mprotect, {at, kPageSize, PROT_READ | PROT_EXEC});
  remote_ = RemoteProcess(remote_.thread(), remote_.pid(), {at});
  remote_.set_scratch({at + kPageSize}, kScratchBytes);
  trampoline_ = {at, kTrampolineBytes};
  return trampoline_;
}

void AddressSpaceRestore::unmap_all() {
  std::vector<Range> kept;
  if (inherited_ != nullptr) kept = inherited_->kept;
  kept.push_back({trampoline_.start, trampoline_.start + trampoline_.size});
  normalise(kept);
  for (const Range& hole : subtract(std::vector<Range>{{0, kUserSpaceEnd}}, kept))
    remote_.call("munmap", SYS_munmap, {hole.start, hole.bytes()});
}

bool AddressSpaceRestore::is_kept(const pb::Mapping& mapping) const {
  return inherited_ != nullptr && inherited_->keeps({mapping.start(), mapping.end()});
}

// The mapping is there, with pages of which some are not this process's.
void AddressSpaceRestore::take_over(const pb::Mapping& mapping) {
  const Range whole{mapping.start(), mapping.end()};
  for (const Range& range : intersect(inherited_->foreign, std::vector<Range>{whole}))
    remote_.call("madvise(MADV_DONTNEED)", SYS_madvise, {range.start, range.bytes(), MADV_DONTNEED});
  if (mapping.prot() != (PROT_READ | PROT_WRITE))
    remote_.call("mprotect", SYS_mprotect, {whole.start, whole.bytes(), mapping.prot()});
}

void AddressSpaceRestore::map_vdso() {
  if (memory_.vdso_start() == 0) return;
  // The kernel takes the address as a hint and puts the data pages there, the code after them.
  remote_.call("arch_prctl(ARCH_MAP_VDSO_64)", SYS_arch_prctl, {ARCH_MAP_VDSO_64, memory_.vvar_start()});
  for (const MapsEntry& entry : MapsEntry::read(remote_.pid())) {
    if (entry.path == "[vdso]" && entry.start == memory_.vdso_start() &&
        entry.end - entry.start == memory_.vdso_size()) {
      return;
    }
  }
  throw Error(ErrorKind::kImage, fmt::format("the vdso cannot be put back at {:x}", memory_.vdso_start()), 0,
              "restart on a node with the same kernel");
}

uint64_t AddressSpaceRestore::call_mmap(const pb::Mapping& mapping, uint64_t flags, int fd) {
  if (mapping.noreserve()) flags |= MAP_NORESERVE;
  const int64_t result = remote_.syscall(
      SYS_mmap, {mapping.start(), mapping.end() - mapping.start(), mapping.prot(), flags | MAP_FIXED_NOREPLACE,
                 static_cast<uint64_t>(static_cast<int64_t>(fd)), fd < 0 ? 0 : mapping.offset()});
  if (result < 0) {
    const int error = static_cast<int>(-result);
    throw Error(ErrorKind::kSystem,
                fmt::format("cannot map {:x}-{:x}{}{}: {}", mapping.start(), mapping.end(),
                            mapping.has_file() ? " of " : "", mapping.file().path(), errno_text(error)),
                error);
  }
  return static_cast<uint64_t>(result);
}

void AddressSpaceRestore::attach_segment(const pb::Mapping& mapping, const pb::MemoryObject& object) {
  const auto id = static_cast<uint64_t>(objects_.new_shmid(object));
  const uint64_t flags = (mapping.may_write() ? 0 : SHM_RDONLY) | ((mapping.prot() & PROT_EXEC) != 0 ? SHM_EXEC : 0);
  const uint64_t bytes = mapping.end() - mapping.start();
  const uint64_t whole = page_up(object.size());
  if (mapping.offset() > whole || bytes > whole - mapping.offset()) {
    throw_error(ErrorKind::kImage, "damaged image: the mapping {:x}-{:x} is larger than its System V segment",
                mapping.start(), mapping.end());
  }
  if (bytes == whole) {
    remote_.call("shmat", SYS_shmat, {id, mapping.start(), flags});
  } else {
    // A part is left of it: attach all of it somewhere, move the part, drop the rest.
    const auto at = static_cast<uint64_t>(remote_.call("shmat", SYS_shmat, {id, 0, flags}));
    remote_.call("mremap", SYS_mremap,
                 {at + mapping.offset(), bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, mapping.start()});
    if (mapping.offset() > 0) remote_.call("munmap", SYS_munmap, {at, mapping.offset()});
    const uint64_t after = mapping.offset() + bytes;
    if (after < whole) remote_.call("munmap", SYS_munmap, {at + after, whole - after});
  }
  remote_.call("mprotect", SYS_mprotect, {mapping.start(), bytes, mapping.prot()});
}

void AddressSpaceRestore::map_object(const pb::Mapping& mapping) {
  const pb::MemoryObject& object = objects_.find(mapping.object());
  if (object.kind() == pb::MemoryObject::SYSV && mapping.kind() == pb::Mapping::OBJECT) {
    attach_segment(mapping, object);
    return;
  }
  call_mmap(mapping, mapping.kind() == pb::Mapping::OBJECT ? MAP_SHARED : MAP_PRIVATE, sources_.open(remote_, mapping));
}

void AddressSpaceRestore::map_anonymous(const pb::Mapping& mapping) {
  if (mapping.droppable()) {
    const int64_t result = remote_.syscall(SYS_mmap, {mapping.start(), mapping.end() - mapping.start(), mapping.prot(),
                                                      kMapDroppable | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, ~0ull, 0});
    if (result >= 0) return;  // a kernel before 6.11 has it as memory that stays
  }
  call_mmap(mapping, MAP_PRIVATE | MAP_ANONYMOUS | (mapping.growsdown() ? MAP_GROWSDOWN : 0), -1);
}

void AddressSpaceRestore::map(const pb::Mapping& mapping) {
  if (is_kept(mapping)) return take_over(mapping);
  switch (mapping.kind()) {
    case pb::Mapping::OBJECT:
    case pb::Mapping::OBJECT_PRIVATE:
      return map_object(mapping);
    case pb::Mapping::FILE_PRIVATE:
    case pb::Mapping::FILE_READONLY_SHARED:
      call_mmap(mapping, mapping.shared() ? MAP_SHARED : MAP_PRIVATE, sources_.open(remote_, mapping));
      return;
    default:
      return map_anonymous(mapping);
  }
}

void AddressSpaceRestore::map_all() {
  restore_protection_keys(remote_, memory_);
  for (const pb::Mapping& mapping : memory_.mappings()) {
    if (mapping.kind() == pb::Mapping::VDSO || mapping.kind() == pb::Mapping::VVAR) continue;  // there already
    map(mapping);
    // Before the pages come: they are then allocated as the program wanted.
    restore_numa_policy(remote_, mapping);
    for (const uint32_t advice : mapping.advice()) {
      if (advice == MADV_HUGEPAGE || advice == MADV_NOHUGEPAGE) advise(mapping, advice);
    }
  }
  sources_.close(remote_);
}

void AddressSpaceRestore::plan_pages(const VersionReader& version, const PageStoreReader* shared, bool lazy,
                                     PageFill& fill) {
  reader_.emplace(version, memory_.index());
  std::vector<Range> large;
  const bool huge = huge_pages_always();
  for (const pb::Mapping& mapping : memory_.mappings()) {
    if (can_come_later(mapping) && !is_kept(mapping) && (lazy || !wants_huge_pages(mapping, huge)))
      large.push_back({mapping.start(), mapping.end()});
  }
  const std::vector<Range> all = {{0, kAddressEnd}};
  const PageFill::FreshMemory fresh = lazy ? PageFill::FreshMemory() : register_fresh(large);
  if (shared != nullptr) {
    std::vector<Range> missing = shared_pages_of(memory_);
    if (inherited_ != nullptr) missing = subtract(missing, inherited_->present);
    fill.add(remote_.pid(), memory_, *shared, missing, fresh);
  }
  if (lazy) later_ = std::move(large);
  fill.add(remote_.pid(), memory_, *reader_, subtract(all, later_), fresh);
}

// Nothing at all where the kernel does not allow it: there is another way to fill memory.
PageFill::FreshMemory AddressSpaceRestore::register_fresh(const std::vector<Range>& mappings) {
  PageFill::FreshMemory fresh;
  if (mappings.empty()) return fresh;
  const int64_t remote =
      remote_.syscall(SYS_userfaultfd, {static_cast<uint64_t>(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)});
  if (remote < 0) return fresh;
  fresh.uffd = std::make_shared<UniqueFd>(remote_.take_away_fd(remote));
  uffdio_api api{};
  api.api = UFFD_API;
  if (::ioctl(fresh.uffd->get(), UFFDIO_API, &api) != 0) return {};
  for (const Range& mapping : mappings) {
    uffdio_register range{};
    range.range = {mapping.start, mapping.bytes()};
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (::ioctl(fresh.uffd->get(), UFFDIO_REGISTER, &range) == 0) fresh.ranges.push_back(mapping);
  }
  return fresh;
}

void AddressSpaceRestore::advise(const pb::Mapping& mapping, uint32_t advice) {
  remote_.call("madvise", SYS_madvise, {mapping.start(), mapping.end() - mapping.start(), advice});
}

void AddressSpaceRestore::finish(LazyFill* lazy) {
  if (lazy != nullptr && !later_.empty()) lazy->add(remote_, std::move(*reader_), std::move(later_));
  reader_.reset();
  for (const pb::Mapping& mapping : memory_.mappings()) {
    if (mapping.kind() == pb::Mapping::VDSO || mapping.kind() == pb::Mapping::VVAR) continue;
    const uint64_t bytes = mapping.end() - mapping.start();
    for (const uint32_t advice : mapping.advice()) {
      if (advice != MADV_HUGEPAGE && advice != MADV_NOHUGEPAGE) advise(mapping, advice);
    }
    for (const pb::Guard& guard : mapping.guards()) {
      remote_.call("madvise(MADV_GUARD_INSTALL)", SYS_madvise,
                   {guard.start(), guard.end() - guard.start(), kMadvGuardInstall});
    }
    if (!mapping.name().empty()) {
      remote_.reset_scratch();
      // A kernel without names does not matter.
      remote_.syscall(SYS_prctl, {PR_SET_VMA, PR_SET_VMA_ANON_NAME, mapping.start(), bytes,
                                  remote_.stage_string(mapping.name()).value});
    }
    if (mapping.locked() || mapping.locked_on_fault()) {
      remote_.call("mlock2", SYS_mlock2, {mapping.start(), bytes, mapping.locked_on_fault() ? MLOCK_ONFAULT : 0u});
    }
  }
  remote_.reset_scratch();
  // The program may have been deleted, as a saved object, or replaced by now.
  restore_mm_layout(remote_, memory_, sources_.open_program(remote_, memory_));
  sources_.close(remote_);
  remote_.reset_scratch();
}

}  // namespace icp
