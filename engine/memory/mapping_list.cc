// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/mapping_list.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/procfs.h"
#include "engine/base/times.h"
#include "engine/base/unique_fd.h"
#include "engine/memory/mapped_file.h"
#include "engine/tracker/pagemap_scan.h"

namespace icp {
namespace {

struct FlagName {
  const char* name;
  VmFlag flag;
};
constexpr FlagName kFlagNames[] = {
    {"mw", kVmMayWrite},    {"gd", kVmGrowsDown},  {"lo", kVmLocked},     {"lf", kVmLockOnFault}, {"nr", kVmNoReserve},
    {"dc", kVmDontCopy},    {"dd", kVmDontDump},   {"wf", kVmWipeOnFork}, {"hg", kVmHugePage},    {"nh", kVmNoHugePage},
    {"mg", kVmMergeable},   {"sr", kVmSequential}, {"rr", kVmRandom},     {"ht", kVmHugetlb},     {"io", kVmIo},
    {"pf", kVmPfnMap},      {"um", kVmUserfault},  {"ui", kVmUserfault},  {"dp", kVmDroppable},   {"gu", kVmGuard},
    {"ss", kVmShadowStack}, {"sl", kVmSealed},
};

// Values of madvise(2) that a mapping's flags stand for.
constexpr std::pair<VmFlag, uint32_t> kAdvice[] = {
    {kVmDontCopy, MADV_DONTFORK},     {kVmDontDump, MADV_DONTDUMP},     {kVmWipeOnFork, MADV_WIPEONFORK},
    {kVmHugePage, MADV_HUGEPAGE},     {kVmNoHugePage, MADV_NOHUGEPAGE}, {kVmMergeable, MADV_MERGEABLE},
    {kVmSequential, MADV_SEQUENTIAL}, {kVmRandom, MADV_RANDOM},
};

// True when `now` may be (part of) what `old` was: the same file at the same offset, or none.
bool same_origin(const MapsEntry& old, const MapsEntry& now) {
  if (old.shared != now.shared || old.ino != now.ino || old.dev_major != now.dev_major ||
      old.dev_minor != now.dev_minor || old.path != now.path) {
    return false;
  }
  return old.ino == 0 || old.start - old.offset == now.start - now.offset;
}

// Flags of a mapping from those of a moment ago: mappings are split and merged all the time (mprotect does, and so does
// the tracker), which changes no other flag. None when it may be new.
std::optional<uint32_t> known_flags(const std::vector<RawMapping>& old, const MapsEntry& now) {
  auto it =
      std::partition_point(old.begin(), old.end(), [&](const RawMapping& raw) { return raw.maps.end <= now.start; });
  std::optional<uint32_t> flags;
  uint64_t covered = now.start;
  const bool grows = now.path == "[heap]" || now.path == "[stack]";
  for (; it != old.end() && it->maps.start < now.end; ++it) {
    if (!same_origin(it->maps, now) || (flags && *flags != it->flags)) return std::nullopt;
    if (it->maps.start > covered && !grows) return std::nullopt;
    flags = it->flags;
    covered = it->maps.end;
  }
  if (covered < now.end && !grows) return std::nullopt;
  return flags;
}

// Device of the kernel's own shared-memory file system, which holds memfds, System V segments and shared anonymous
// memory (mm/shmem.c, shm_mnt). It is mounted nowhere, so a path on it is the kernel's word.
uint64_t shared_memory_device() {
  static const uint64_t device = [] {
    const UniqueFd fd(::memfd_create("icp-probe", MFD_CLOEXEC));
    struct stat status {};
    return fd && ::fstat(fd.get(), &status) == 0 ? static_cast<uint64_t>(status.st_dev) : ~0ull;
  }();
  return device;
}

bool in_shm(const std::string& path) { return path.starts_with("/dev/shm/"); }

pb::MemoryObject::Kind kind_on_shared_memory_device(const std::string& path) {
  if (path.starts_with("/SYSV")) return pb::MemoryObject::SYSV;
  if (path.starts_with("/memfd:")) return pb::MemoryObject::MEMFD;
  return pb::MemoryObject::ANON_SHARED;
}

}  // namespace

uint32_t vm_flags(const SmapsEntry& entry) {
  uint32_t bits = 0;
  for (const std::string& name : entry.vm_flags) {
    for (const FlagName& known : kFlagNames) {
      if (name == known.name) bits |= known.flag;
    }
  }
  bits |= static_cast<uint32_t>(entry.protection_key) << kVmKeyShift;
  return bits;
}

const std::vector<RawMapping>& MappingCache::refresh(pid_t pid) {
  mappings_.clear();
  for (SmapsEntry& entry : SmapsEntry::read(pid)) {
    const uint32_t flags = vm_flags(entry);
    mappings_.push_back({std::move(static_cast<MapsEntry&>(entry)), flags});
  }
  return mappings_;
}

const std::vector<RawMapping>& MappingCache::update(pid_t pid, const std::vector<MapsEntry>& maps) {
  std::vector<RawMapping> now;
  now.reserve(maps.size());
  for (const MapsEntry& entry : maps) {
    const std::optional<uint32_t> flags = known_flags(mappings_, entry);
    if (!flags) return refresh(pid);
    now.push_back({entry, *flags});
  }
  mappings_ = std::move(now);
  return mappings_;
}

void fill_identity(const struct stat& status, const std::string& path, pb::FileIdentity& out) {
  out.set_path(path);
  out.set_dev(status.st_dev);
  out.set_ino(status.st_ino);
  out.set_size(static_cast<uint64_t>(status.st_size));
  out.set_mtime_ns(nanoseconds(status.st_mtim));
  out.set_mode(status.st_mode);
}

ObjectKey object_key_of_file(const struct stat& status, const std::string& target) {
  if (static_cast<uint64_t>(status.st_dev) == shared_memory_device()) {
    const auto kind = kind_on_shared_memory_device(target);
    return {kind, kind == pb::MemoryObject::SYSV ? 0 : status.st_dev, status.st_ino};
  }
  const bool deleted = status.st_nlink == 0 || (!in_shm(target) && target.ends_with(kDeleted));
  return {deleted ? pb::MemoryObject::DELETED_FILE : pb::MemoryObject::SHM_FILE, status.st_dev, status.st_ino};
}

std::optional<MappingClass> tracked_as(pb::Mapping::Kind kind) {
  switch (kind) {
    case pb::Mapping::ANONYMOUS:
      return MappingClass::kAnonymous;
    case pb::Mapping::FILE_PRIVATE:
    case pb::Mapping::OBJECT_PRIVATE:
      return MappingClass::kPrivateFile;
    case pb::Mapping::OBJECT:
      return MappingClass::kShared;
    default:
      return std::nullopt;
  }
}

bool MemoryMapping::takes_private_pages() const {
  const auto as = tracked_as();
  // Droppable memory (the vdso's random numbers) may lose its content at any moment, and must not be used twice.
  return as && *as != MappingClass::kShared && (flags & kVmDroppable) == 0;
}

void MemoryMapping::to_proto(pb::Mapping& out) const {
  out.set_start(maps.start);
  out.set_end(maps.end);
  out.set_prot((maps.readable ? PROT_READ : 0u) | (maps.writable ? PROT_WRITE : 0u) |
               (maps.executable ? PROT_EXEC : 0u));
  out.set_kind(kind);
  out.set_shared(maps.shared);
  out.set_growsdown((flags & kVmGrowsDown) != 0);
  out.set_locked((flags & kVmLocked) != 0);
  out.set_locked_on_fault((flags & kVmLockOnFault) != 0);
  out.set_noreserve((flags & kVmNoReserve) != 0);
  out.set_may_write((flags & kVmMayWrite) != 0);
  out.set_droppable((flags & kVmDroppable) != 0);
  const bool of_kernel = kind == pb::Mapping::VDSO || kind == pb::Mapping::VVAR;  // which seals its own
  out.set_sealed((flags & kVmSealed) != 0 && !of_kernel);
  out.set_protection_key(flags >> kVmKeyShift);
  for (const auto& [flag, advice] : kAdvice) {
    if ((flags & flag) != 0) out.add_advice(advice);
  }
  if (kind == pb::Mapping::ANONYMOUS) {
    if (maps.path.starts_with("[anon:") && maps.path.ends_with(']')) {
      out.set_name(maps.path.substr(6, maps.path.size() - 7));
    }
    return;
  }
  out.set_offset(maps.offset);
  if (kind == pb::Mapping::FILE_PRIVATE || kind == pb::Mapping::FILE_READONLY_SHARED) {
    fill_identity(file, maps.path, *out.mutable_file());
  }
}

std::optional<MemoryMapping> MappingClassifier::classify(const RawMapping& raw) {
  const std::string& path = raw.maps.path;
  if (path == "[vsyscall]" || path == "[uprobes]") return std::nullopt;
  MemoryMapping mapping;
  mapping.maps = raw.maps;
  mapping.flags = raw.flags;
  const auto refuse = [&](std::string problem, std::string hint) {
    mapping.problem = std::move(problem);
    mapping.hint = std::move(hint);
  };
  if (path == "[vdso]") {
    mapping.kind = pb::Mapping::VDSO;
  } else if (path.starts_with("[vvar")) {
    mapping.kind = pb::Mapping::VVAR;
  } else if ((raw.flags & kVmHugetlb) != 0) {
    refuse("huge pages of hugetlbfs (MAP_HUGETLB)", "use transparent huge pages (madvise MADV_HUGEPAGE) instead");
  } else if ((raw.flags & kVmShadowStack) != 0) {
    refuse("a shadow stack", "start the program with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK");
  } else if ((raw.flags & kVmUserfault) != 0) {
    refuse("page faults handled by a user-space program (userfaultfd)", "close the userfaultfd before the checkpoint");
  } else if (raw.maps.ino == 0 && raw.maps.dev_major == 0 && raw.maps.dev_minor == 0) {
    mapping.kind = pb::Mapping::ANONYMOUS;
    if ((raw.flags & (kVmIo | kVmPfnMap)) != 0) refuse("memory of a device", "close the device before the checkpoint");
  } else {
    classify_file(mapping);
    if (mapping.problem.empty() && (raw.flags & (kVmIo | kVmPfnMap)) != 0) {
      refuse("memory of the device " + path, "close the device before the checkpoint");
    }
  }
  return mapping;
}

void MappingClassifier::classify_kernel_shared_memory(MemoryMapping& mapping) {
  const MapsEntry& maps = mapping.maps;
  const bool known = maps.path.starts_with("/SYSV") || maps.path.starts_with("/memfd:") || maps.path == "/dev/zero" ||
                     maps.path.starts_with("[anon_shmem:");
  if (!known) {
    mapping.problem = "memory of the kernel's " + maps.path;
    mapping.hint = "close the device it belongs to before the checkpoint";
    return;
  }
  const auto kind = kind_on_shared_memory_device(maps.path);
  mapping.kind = maps.shared ? pb::Mapping::OBJECT : pb::Mapping::OBJECT_PRIVATE;
  mapping.object = ObjectKey{kind, kind == pb::MemoryObject::SYSV ? 0 : mapping.file.st_dev, mapping.file.st_ino};
}

// The name it was mapped by is gone, the file is not: takes another one of the same directory.
bool MappingClassifier::find_other_name(MemoryMapping& mapping) const {
  const UniqueFd root = open_root_of(pid_);
  if (!root) return false;
  const std::string directory = directory_of(mapping.maps.path);
  const std::vector<std::string> names = names_in_directory(root.get(), directory, mapping.file);
  if (names.empty()) return false;
  mapping.maps.path = directory + names.front();
  mapping.maps.deleted = false;
  return true;
}

void MappingClassifier::classify_file(MemoryMapping& mapping) {
  const MapsEntry& maps = mapping.maps;
  const auto refuse = [&](const std::string& problem, const std::string& hint) {
    mapping.problem = problem;
    mapping.hint = hint;
  };
  if (!maps.path.starts_with('/') && !maps.path.starts_with("[anon_shmem:")) {
    refuse("a mapping of " + (maps.path.empty() ? "a file without a name" : maps.path),
           "close what it belongs to before the checkpoint");
    return;
  }
  if (maps.path == "/[aio]") {
    refuse("a ring of asynchronous I/O (io_setup)", "call io_destroy before the checkpoint");
    return;
  }
  const auto [known, added] = files_.try_emplace({maps.ino, maps.path});
  if (added && stat_mapped_file(pid_, maps, known->second) != 0) {
    const int error = errno;
    files_.erase(known);
    mapping.vanished = error == ENOENT || error == ESRCH;
    refuse(fmt::format("the mapped file {} cannot be looked at: {}", maps.path, errno_text(error)),
           error != EPERM ? "try again"
                          : "it is mapped privately and has no name any more, which takes CAP_CHECKPOINT_RESTORE to "
                            "read: start the program anew, or have root take the checkpoint");
    return;
  }
  mapping.file = known->second;
  if (static_cast<uint64_t>(mapping.file.st_dev) == shared_memory_device()) {
    classify_kernel_shared_memory(mapping);
  } else if (S_ISCHR(mapping.file.st_mode) && mapping.file.st_rdev == makedev(1, 5)) {
    mapping.kind = pb::Mapping::ANONYMOUS;  // private /dev/zero; a shared one is shared memory
    if (maps.shared) refuse("a shared mapping of /dev/zero", "use MAP_SHARED | MAP_ANONYMOUS");
  } else if (!S_ISREG(mapping.file.st_mode)) {
    refuse("memory of the device " + maps.path, "close the device before the checkpoint");
  } else if (maps.path == "/secretmem") {
    refuse("secret memory (memfd_secret)", "unmap it before the checkpoint");
  } else if (mapping.file.st_nlink == 0 || in_shm(maps.path)) {
    mapping.kind = maps.shared ? pb::Mapping::OBJECT : pb::Mapping::OBJECT_PRIVATE;
    mapping.object = object_key_of_file(mapping.file, maps.path);
  } else if (maps.deleted && !find_other_name(mapping)) {
    // Without a name its content can come back, but not be the same file as that other name's.
    mapping.kind = maps.shared ? pb::Mapping::OBJECT : pb::Mapping::OBJECT_PRIVATE;
    mapping.object = ObjectKey{pb::MemoryObject::DELETED_FILE, mapping.file.st_dev, mapping.file.st_ino};
    if (maps.shared && (mapping.flags & kVmMayWrite) != 0) {
      refuse(fmt::format("the mapped file {}, which has lost this name and has another one elsewhere", maps.path),
             "keep the name that it was opened by");
    }
  } else if (!maps.shared) {
    mapping.kind = pb::Mapping::FILE_PRIVATE;
  } else if ((mapping.flags & kVmMayWrite) != 0) {
    mapping.kind = pb::Mapping::OBJECT;
    mapping.object = ObjectKey{pb::MemoryObject::MAPPED_FILE, mapping.file.st_dev, mapping.file.st_ino};
  } else {
    mapping.kind = pb::Mapping::FILE_READONLY_SHARED;
  }
}

std::vector<std::pair<uint64_t, uint64_t>> guard_ranges(pid_t pid, uint64_t start, uint64_t end) {
  std::vector<std::pair<uint64_t, uint64_t>> found;
  const UniqueFd pagemap(::open(fmt::format("/proc/{}/pagemap", pid).c_str(), O_RDONLY | O_CLOEXEC));
  std::array<PagemapRegion, kScanVector> regions;
  PagemapScanArg arg{};
  arg.size = sizeof arg;
  arg.end = end;
  arg.vec = reinterpret_cast<uint64_t>(regions.data());
  arg.vec_len = regions.size();
  arg.category_mask = kPageGuard;
  arg.return_mask = kPageGuard;
  while (start < end) {
    arg.start = start;
    const int count = ::ioctl(pagemap.get(), kPagemapScan, &arg);
    if (count <= 0) break;
    for (int i = 0; i < count; ++i) {
      found.emplace_back(regions[static_cast<size_t>(i)].start, regions[static_cast<size_t>(i)].end);
    }
    start = found.back().second;
  }
  return found;
}

}  // namespace icp
