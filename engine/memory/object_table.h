// SPDX-License-Identifier: GPL-2.0-or-later
// All memory objects of a capsule over the versions of a session: which there are, who maps them, and how much of each
// has to be looked at.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/memory/shared_object.h"
#include "engine/memory/watch_scope.h"
#include "engine/sysv/ipc_access.h"
#include "engine/sysv/sysv_ipc.h"
#include "engine/tracker/page_tracker.h"

namespace icp {

// Everything about a System V segment that changes when somebody attaches or detaches. Two equal stamps, the first of
// which was `settled`, mean that only the attaches there are can have written in between.
struct SysvStamp {
  uint64_t attached = 0;
  int64_t attach_time = 0, detach_time = 0, create_time = 0;  // unix seconds
  int last_pid = 0;
  bool settled = false;  // all times lie so far back that another event would show
  bool same_as(const SysvStamp& other) const;
};

// What was written to an object comes from its mappers' trackers where these saw every possible write since they were
// last armed; everything else is compared whole, by hash, with what was saved. They saw all when
// - for a System V segment: all attaches are in the capsule, and its own times and counts say that nobody came or went;
// - for memory in tmpfs (System V, memfd, anonymous, /dev/shm): an ObjectWatch was recording, which saw nobody map it,
//   fork with it, or write to it through a descriptor, and nobody else had it to begin with.
// In both cases no page was taken out of it (MADV_REMOVE, truncation), which the watch counts. The watch records from
// before the pre-copy up to the stop only, so all but System V segments are compared whole once a version, by the
// pre-copy, while the processes run.
//
// A round is begin(), passes of start_pass() and note_...() with precopy_collect() and precopy_copy() after each, then
// the last pass, collect() at the stop, and write() or abandon(). One thread.
class ObjectTable {
 public:
  ObjectTable() = default;
  ObjectTable(const ObjectTable&) = delete;
  ObjectTable& operator=(const ObjectTable&) = delete;

  // Where the capsule's System V objects are, if not in this process's namespace; before anything else.
  void set_ipc(std::shared_ptr<IpcAccess> ipc) { ipc_ = std::move(ipc); }
  void begin(VersionWriter& version);
  // Before the first pre-copy pass: watches the memory of `processes` (ascending) up to the stop, where the kernel
  // offers that.
  void watch(std::vector<pid_t> processes) { watch_.record(std::move(processes)); }

  // A mapping found in a pass; returns the object's id. `tracker` sees writes through it. `pid`: where its
  // /proc/PID/map_files is.
  uint32_t note_mapping(const MemoryMapping& mapping, PageTracker& tracker, pid_t pid);
  uint32_t note_file(int local_fd, const std::string& target);

  // While the processes run: arm and find out, then copy. Objects that are not tracked are left to the stop if their
  // copies fit in `staging` bytes: it has to look at all of them anyway.
  uint64_t precopy_collect();
  void precopy_copy(uint64_t staging);
  // Bytes that the stop will have to copy whatever is written until then: objects that are not tracked.
  uint64_t untracked_bytes() const;
  // A regular file that is open for writing, all of whose content is to be saved (checkpoint_files). In each pass;
  // before the stop, it is read then, and in the stop only once more if it has been written to since.
  uint32_t note_open_file(int local_fd, const std::string& target);
  void start_pass();  // forgets the mappings noted, before the next pass

  // At the stop, when all mappings and files have been noted. `distrust`: memory may be written behind the page tables
  // (O_DIRECT). Fills capsule.objects and the segments' object numbers. `root`: the processes' root directory. Throws
  // kBusy when one inode has been seen as two objects.
  void collect(StagingArena& arena, bool distrust, int root, pb::Capsule& capsule);
  // Bytes of memory that the last collect() read whole.
  uint64_t read_whole() const { return read_whole_; }
  void write();
  void abandon();
  // The version that the indexes describe has been folded into `version`.
  void reload(const VersionReader& version);

  // The restored object `id` (its number in the version) as it is mapped now.
  void adopt(const VersionReader& version, uint32_t id, const MemoryMapping& mapping, PageTracker& tracker, pid_t pid);
  // Arms the mappers noted by adopt() and takes the segments' stamps.
  void finish_adopt(uint32_t highest_id);

  // An object of a version of an earlier agent: what it is compared with when it turns up again.
  void resume(const VersionReader& version, const pb::MemoryObject& saved);

  void for_each(const std::function<void(const SharedObject&)>& visit) const;

 private:
  struct Mapper {
    PageTracker* tracker;
    pid_t pid;
    Range range;
    uint64_t offset;
    bool writes;  // or may, after mprotect
    friend auto operator<=>(const Mapper&, const Mapper&) = default;
  };
  // What was known of an object when its mappers were armed.
  struct Armed {
    std::vector<Mapper> mappers;  // ascending
    std::optional<SysvStamp> stamp;
    std::optional<uint64_t> changes;  // ObjectWatch::changes() before
    std::optional<int64_t> time;      // without a watch: of the last change of the inode, once it is past, in ns
    bool alone = false;
  };
  struct FileStamp {
    int64_t changed_ns = 0;
    off_t size = 0;
  };
  struct Found {
    std::vector<Range> written;
    bool all = false;  // there is nothing else
  };
  // What is known of an object. In a pass that has not seen it nothing of the pass is set; see check().
  struct Entry {
    std::unique_ptr<SharedObject> object;  // never null

    // In this pass.
    bool seen = false;
    bool open = false;                          // by a descriptor
    bool whole_file = false;                    // by note_open_file()
    std::vector<Mapper> mappers;                // of mappings that are saved as the object's
    std::optional<std::vector<Range>> written;  // tracked: found written, to be copied

    // In this version.
    bool precopied = false;  // what it had by then is in the store
    bool unknown = false;    // tracked, and what was written before is not known

    // From version to version.
    std::optional<Armed> armed;
    std::optional<FileStamp> stamp;  // of a whole file, when it was last read

    void end_pass();
    void check() const;
  };

  Entry& entry(const ObjectKey& key);
  // The same with its content opened, by `open` if it is not yet; one that cannot be opened does not count as seen.
  Entry& entry(const ObjectKey& key, const std::string& target,
               const std::function<std::unique_ptr<ObjectSource>()>& open);
  // Those seen in this pass, by key.
  std::vector<Entry*> seen();
  void disarm();
  void save_detached_segment(pb::ShmSegment& segment, StagingArena& arena);
  void check_inodes() const;
  static bool is_as_read(const Entry& entry);
  void end_watch();
  void start_arming();
  // What was written since the object's mappers were last armed; arms them.
  Found arm(Entry& entry);
  // False when a mapper was not tracked.
  static bool collect_mappers(const Armed& armed, std::vector<Range>& written);
  bool saw_all(const SharedObject& object, const Armed& before, const Armed& now) const;
  bool can_be_tracked(const Entry& entry) const;
  // The watch sees whoever else begins to write to it.
  bool alone(const SharedObject& object) const { return watch_.alone(inode_id(object.status())); }
  void find_others();
  std::optional<SysvStamp> take_stamp(const SharedObject& object) const;
  void list_segments();
  IpcAccess& ipc();

  std::shared_ptr<IpcAccess> ipc_;
  VersionWriter* version_ = nullptr;
  std::map<ObjectKey, Entry> entries_;
  std::vector<IpcObject> segments_;  // as listed at the start of the pass
  WatchScope watch_{[this] { disarm(); }};
  uint64_t read_whole_ = 0;
  uint32_t next_id_ = 1;
};

}  // namespace icp
