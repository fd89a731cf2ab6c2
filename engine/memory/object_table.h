// SPDX-License-Identifier: GPL-2.0-or-later
// All memory objects of a capsule over the versions of a session: which there are, who maps them, and how much of each
// has to be looked at.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/base/error.h"
#include "engine/memory/object_watch.h"
#include "engine/memory/shared_object.h"
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
class ObjectTable {
 public:
  // Where the capsule's System V objects are, if not in this process's namespace; before anything else.
  void set_ipc(std::shared_ptr<IpcAccess> ipc) { ipc_ = std::move(ipc); }
  void begin(VersionWriter& version);
  // Before the first pre-copy pass: watches the memory of `processes` (ascending) up to the stop, where the kernel
  // offers that.
  void watch(std::vector<pid_t> processes);

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

  const std::map<ObjectKey, std::unique_ptr<SharedObject>>& objects() const { return objects_; }

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
  SharedObject& object(const ObjectKey& key);
  // The same with its content opened, by `open` if it is not yet; one that cannot be opened does not count as seen.
  SharedObject& object(const ObjectKey& key, const std::string& target,
                       const std::function<std::unique_ptr<ObjectSource>()>& open);
  void save_detached_segment(pb::ShmSegment& segment, StagingArena& arena);
  void make_watch();
  void check_inodes() const;
  bool is_as_read(const SharedObject& object) const;
  void end_watch();
  void drop_watch();
  void without_watch(const Error& error);
  void start_arming();
  // What was written since the object's mappers were last armed; arms them.
  Found arm(const SharedObject& object);
  // False when a mapper was not tracked.
  static bool collect_mappers(const Armed& armed, std::vector<Range>& written);
  bool saw_all(const SharedObject& object, const Armed& before, const Armed& now) const;
  bool can_be_tracked(const SharedObject& object) const;
  // The watch sees whoever else begins to write to it.
  bool alone(const SharedObject& object) const;
  // Whom the watch will not see come: those that have it already. Goes through /proc: not for the stop, where what has
  // not been armed before is looked at whole anyway.
  void find_others();
  std::optional<SysvStamp> take_stamp(const SharedObject& object) const;
  void list_segments();
  IpcAccess& ipc();

  std::shared_ptr<IpcAccess> ipc_;
  VersionWriter* version_ = nullptr;
  std::map<ObjectKey, std::unique_ptr<SharedObject>> objects_;
  std::map<ObjectKey, std::vector<Mapper>> mappers_;
  std::map<ObjectKey, Armed> armed_;
  std::map<ObjectKey, std::vector<Range>> precopy_;  // tracked objects: found written, to be copied
  std::set<ObjectKey> seen_;                         // in this pass
  std::set<ObjectKey> open_;                         // in this pass, by a descriptor
  std::set<ObjectKey> whole_files_;                  // in this pass, by note_open_file()
  std::map<ObjectKey, FileStamp> stamps_;            // of these, when they were last read
  std::set<ObjectKey> precopied_;                    // in this version
  std::set<ObjectKey> unknown_;                      // tracked objects whose earlier writes are not known
  std::vector<IpcObject> segments_;                  // as listed at the start of the pass
  std::unique_ptr<ObjectWatch> watch_;               // null: not offered, or not asked for yet
  bool watch_failed_ = false;
  std::optional<uint64_t> changes_;  // its count when the pass began
  std::vector<pid_t> watched_processes_;
  ObjectWatch::Seen watched_;           // since the mappings of the last pass were read, or earlier
  std::set<InodeId> checked_, others_;  // looked at for the watch in this version; that others have, too
  uint64_t read_whole_ = 0;
  uint32_t next_id_ = 1;
};

}  // namespace icp
