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

#include "engine/memory/shared_object.h"
#include "engine/sysv/sysv_ipc.h"
#include "engine/tracker/page_tracker.h"

namespace icp {

// A System V segment is taken from its mappers' trackers when these saw every possible write: all attaches are in the
// capsule and tracked since the last look, and the segment's own times and counts say that nobody came or went. All
// other objects, and segments for which that does not hold, are compared whole.
//
// The calling thread's IPC namespace is the capsule's.
class ObjectTable {
 public:
  void begin(VersionWriter& version);

  // A mapping found in a pass; returns the object's id. `tracker` sees writes through it. `pid`: where its
  // /proc/PID/map_files is.
  uint32_t note_mapping(const MemoryMapping& mapping, PageTracker& tracker, pid_t pid);
  uint32_t note_file(int local_fd, const std::string& target);

  // While the processes run: arm and find out, then copy.
  uint64_t precopy_collect();
  void precopy_copy();
  void start_pass();  // forgets the mappings noted, before the next pass

  // At the stop, when all mappings and files have been noted. `distrust`: memory may be written behind the page tables
  // (O_DIRECT). Fills capsule.objects and the segments' object numbers.
  void collect(StagingArena& arena, bool distrust, pb::Capsule& capsule);
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
    Range range;
    uint64_t offset;
  };
  SharedObject& object(const ObjectKey& key);
  // The same with its content opened, by `open` if it is not yet; one that cannot be opened does not count as seen.
  SharedObject& object(const ObjectKey& key, const std::string& target, const std::function<UniqueFd()>& open);
  void save_detached_segment(pb::ShmSegment& segment, StagingArena& arena);
  // Written parts of a segment since its mappers were last armed; arms them. False when some were not tracked.
  bool collect_mappers(const SharedObject& object, std::vector<Range>& written);
  std::optional<SysvStamp> take_stamp(const SharedObject& object) const;
  void list_segments();
  bool exact(const SharedObject& object, const std::optional<SysvStamp>& now) const;

  VersionWriter* version_ = nullptr;
  std::map<ObjectKey, std::unique_ptr<SharedObject>> objects_;
  std::map<ObjectKey, std::vector<Mapper>> mappers_;
  std::map<ObjectKey, std::vector<Range>> precopy_;  // segments: found written, to be copied
  std::set<ObjectKey> seen_;                         // in this pass
  std::set<ObjectKey> precopied_;                    // in this version
  std::set<ObjectKey> unknown_;                      // segments whose earlier writes are not known
  std::vector<IpcObject> segments_;                  // as listed at the start of the pass
  uint32_t next_id_ = 1;
};

}  // namespace icp
