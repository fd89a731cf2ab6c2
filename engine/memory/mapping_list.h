// SPDX-License-Identifier: GPL-2.0-or-later
// What the mappings of a process are, and what a restore needs to know of each.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/finding.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image.pb.h"
#include "engine/tracker/page_tracker.h"

namespace icp {

// How a tracker is to look at a mapping of this kind; none when its pages are nobody's business (vdso, files).
std::optional<MappingClass> tracked_as(pb::Mapping::Kind kind);

// Identity of memory that may be shared: device and inode, or the segment id (System V).
struct ObjectKey {
  pb::MemoryObject::Kind kind{};
  uint64_t dev = 0, ino = 0;  // SYSV: 0 and shmid
  friend auto operator<=>(const ObjectKey&, const ObjectKey&) = default;
};

// VmFlags of /proc/PID/smaps (fs/proc/task_mmu.c, show_smap_vma_flags) that matter here, as bits.
enum VmFlag : uint32_t {
  kVmMayWrite = 1 << 0,
  kVmGrowsDown = 1 << 1,
  kVmLocked = 1 << 2,
  kVmLockOnFault = 1 << 3,
  kVmNoReserve = 1 << 4,
  kVmDontCopy = 1 << 5,
  kVmDontDump = 1 << 6,
  kVmWipeOnFork = 1 << 7,
  kVmHugePage = 1 << 8,
  kVmNoHugePage = 1 << 9,
  kVmMergeable = 1 << 10,
  kVmSequential = 1 << 11,
  kVmRandom = 1 << 12,
  kVmHugetlb = 1 << 13,
  kVmIo = 1 << 14,
  kVmPfnMap = 1 << 15,
  kVmUserfault = 1 << 16,  // missing or minor faults go to somebody
  kVmDroppable = 1 << 17,
  kVmGuard = 1 << 18,
  kVmShadowStack = 1 << 19,
  kVmSealed = 1 << 20,
};
// And its protection key (ProtectionKey:) above them.
inline constexpr int kVmKeyShift = 28;
uint32_t vm_flags(const SmapsEntry& entry);

// A mapping as /proc shows it.
struct RawMapping {
  MapsEntry maps;
  uint32_t flags = 0;  // VmFlag
};

// The mappings of one process over a session. smaps walks all page tables and is slow, so it is read while the process
// runs, once a version (MemoryCapture::check); at the stop maps is enough, and what was mapped a moment ago keeps its
// flags.
class MappingCache {
 public:
  // Reads smaps.
  const std::vector<RawMapping>& refresh(pid_t pid);
  // From what maps said; reads smaps if there is a mapping whose flags are not known.
  const std::vector<RawMapping>& update(pid_t pid, const std::vector<MapsEntry>& maps);
  const std::vector<RawMapping>& mappings() const { return mappings_; }

 private:
  std::vector<RawMapping> mappings_;
};

// One mapping, understood.
struct MemoryMapping {
  MapsEntry maps;
  uint32_t flags = 0;
  pb::Mapping::Kind kind{};
  std::optional<ObjectKey> object;  // OBJECT, OBJECT_PRIVATE
  struct stat file {};              // when there is a file behind it
  std::string problem, hint;        // not empty: cannot be checkpointed, and why
  bool vanished = false;            // the problem is that it was unmapped meanwhile (running process)

  std::optional<MappingClass> tracked_as() const { return icp::tracked_as(kind); }
  bool takes_private_pages() const;
  void to_proto(pb::Mapping& out) const;  // all but the object's id
};

// Classifies mappings of one pass; files are looked at once each. `pid` is where /proc/PID/map_files is.
class MappingClassifier {
 public:
  explicit MappingClassifier(pid_t pid) : pid_(pid) {}
  // None for a mapping that is the kernel's own affair ([vsyscall]).
  std::optional<MemoryMapping> classify(const RawMapping& raw);

 private:
  void classify_file(MemoryMapping& mapping);
  bool find_other_name(MemoryMapping& mapping) const;
  void classify_kernel_shared_memory(MemoryMapping& mapping);

  pid_t pid_;
  std::map<std::pair<uint64_t, std::string>, struct stat> files_;  // by inode and path
};

// Object behind an open memfd, /dev/shm file or deleted file, by fstat and link target. Whether a file is deleted is
// its inode's word: the name it was opened by may be gone and another one lead to it (sem_open(3) makes its files so).
ObjectKey object_key_of_file(const struct stat& status, const std::string& target);
void fill_identity(const struct stat& status, const std::string& path, pb::FileIdentity& out);

// Pages of a range that are guards (MADV_GUARD_INSTALL, Linux 6.13); none when the kernel cannot tell.
std::vector<std::pair<uint64_t, uint64_t>> guard_ranges(pid_t pid, uint64_t start, uint64_t end);

}  // namespace icp
