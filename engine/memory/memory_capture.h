// SPDX-License-Identifier: GPL-2.0-or-later
// Memory of all processes of a capsule into page stores, over the versions of a session.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/finding.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image.pb.h"
#include "engine/image/image_dir.h"
#include "engine/image/page_store.h"
#include "engine/process/stopped_tree.h"
#include "engine/tracker/page_tracker.h"

namespace icp {

class MappingCache;

// Mappings that cannot be checkpointed (devices, hugetlb, io_uring, aio rings ...). Stops nothing. `cache_of` names
// where the mappings of a process are remembered, or null; it may be empty.
void check_memory(const std::vector<ProcessRef>& processes, Findings& findings,
                  const std::function<MappingCache*(const ProcessRef&)>& cache_of = {});

class IpcAccess;

struct MemoryOptions {
  TrackerKind tracker = TrackerKind::kAuto;
  uint64_t staging_limit = 1ull << 30;  // bytes of page copies held in the agent during a stop; beyond it
                                        // pages are written while the processes are stopped (and logged)
  unsigned precopy_rounds = 3;
  bool dedup = false;  // private pages that hold what they held in the version before are not stored again
  bool keep = false;   // trackings outlive the agent, where the kernel can do that: see resume()
  std::string root;    // not used: files are looked at through /proc/PID/map_files
  // Makes every thread of the capsule pass through a stop. Called in each pre-copy round between arming and copying: a
  // kernel write that was under way when the pages were armed (O_DIRECT, process_vm_writev) has pinned them and goes
  // unseen, but no system call outlives a stop. Without it such writes can be missed in a pre-copy. Calls what it is
  // given while all are stopped: that is when trackers begin with new mappings.
  using Quiesce = std::function<void(const std::function<void()>& stopped)>;
  Quiesce quiesce = {};
};

struct OpenedFile {
  UniqueFd fd;
  std::string path;
};

struct MemoryStats {
  uint64_t pages_written = 0;  // page records in this version
  uint64_t pages_total = 0;    // pages described by the indexes
  std::string tracker;         // name of the tracker (of the first process)
  bool full = false;           // no page was taken over from an earlier version
  bool shared = false;         // relatives share pages in it: AddressSpace.shared_pages
  uint64_t read_whole = 0;     // bytes of shared memory that were read whole in the stop
};

// Keeps, between the versions of one session, a tracker and a page index for each address space and each
// shared object. A round is: track() for new processes (stopped for a moment), begin(), precopy() while they
// run, collect() while all are stopped, write() after they run on. abandon() instead of write() when the
// round failed: the next version is then full. One agent thread (the ptrace one) only.
//
// Private memory comes from the tracker. Shared memory (anonymous shared, memfd, /dev/shm, shared file
// mappings, System V) is an object with a store of its own, saved once however many map it: see ObjectTable.
class MemoryCapture {
 public:
  explicit MemoryCapture(MemoryOptions options);
  ~MemoryCapture();
  MemoryCapture(MemoryCapture&&) noexcept;
  MemoryCapture& operator=(MemoryCapture&&) noexcept;

  // True when the process has no tracker yet, or was replaced by exec since.
  bool needs_tracker(const ProcessRef& process) const;
  void track(StoppedProcess& process);

  // check_memory(), before each version: what it reads (madvise and mlock may have changed flags of old mappings) is
  // what the stop goes by.
  void check(const std::vector<ProcessRef>& processes, Findings& findings);

  // Where the System V objects of the capsule are, before precopy(), collect() and adopt().
  void set_ipc(std::shared_ptr<IpcAccess> ipc);
  // Sets MemoryOptions::quiesce, for an object that came without it (a restored capsule's).
  void set_quiesce(MemoryOptions::Quiesce quiesce);
  // `last` opens the version that the indexes describe; empty when there is none. Used until write() or abandon().
  void begin(VersionWriter& version, std::function<VersionReader()> last = {});
  // In MemoryOptions::precopy_rounds rounds, or fewer.
  static constexpr unsigned kAllRounds = ~0u;
  void precopy(const std::vector<ProcessRef>& processes, unsigned most_rounds = kAllRounds);
  // All processes are stopped, with no scratch memory of ours mapped in them; zombies have no memory. Fills
  // states[i]->memory (mappings, mm layout, auxv, exe, vdso), capsule.objects and ShmSegment.object of capsule.sysv
  // (already filled by capture_sysv), and stages all remaining written pages. Throws kRefused for a mapping that cannot
  // be checkpointed, kGone when a process was killed meanwhile: abandon() then.
  void collect(std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states, pb::Capsule& capsule);
  // Object id for an open memfd, /dev/shm file or deleted file (see ObjectResolver in file_table.h). Call after
  // precopy() and before collect() of the same round.
  uint32_t object_of_file(int local_fd, const std::string& target);
  // The same for an open regular file, all of whose content is saved. Ahead of the stop: files of which that will be
  // asked, to be read then; descriptors stay open as long as the caller's version is being taken.
  uint32_t object_of_open_file(int local_fd, const std::string& target);
  void set_open_files(std::vector<OpenedFile> files);
  // Completes AddressSpace::shared_pages of the `states` that collect() had.
  MemoryStats write();
  // Also after write(), when the version was not committed in the end.
  void abandon();

  // The version that the indexes describe has been folded into `version`: goes on from there.
  void reload(const VersionReader& version);
  // Switches MemoryOptions::dedup. The hashes of what `version` holds, which is what the indexes describe, are taken
  // from its page files.
  void begin_dedup(const VersionReader& version);
  bool dedup() const;

  // Before the first version of a capsule whose memory came lazily, so that nothing was tracked since the restart:
  // private pages that hold what they held in `version`, which it came from, are not stored again. Until write() or
  // abandon().
  void inherit(const VersionReader& version);

  // A restored capsule goes on incrementally from the version it came from: takes over the stores' indexes.
  // The processes are stopped, fully restored, with no scratch memory mapped in them.
  void adopt(const VersionReader& version, const pb::Capsule& capsule, std::vector<StoppedProcess>& processes);

  // The version of the last write() is committed: with MemoryOptions::keep, a later agent can go on from it.
  void saved_as(const pb::Manifest& version);
  // Goes on from a version of an agent that has ended, with those processes whose trackings it kept and which nobody
  // has looked at since; the others are new. False when there is none such; after an error, abandon().
  bool resume(const VersionReader& version, const pb::Capsule& capsule, const std::vector<ProcessRef>& processes);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace icp
