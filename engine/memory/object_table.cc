// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/object_table.h"

#include <fcntl.h>
#include <time.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

constexpr int64_t kSettledNs = 50'000'000;  // well over a tick of the kernel's coarse clock, inode times' resolution

bool is_segment(const ObjectKey& key) { return key.kind == pb::MemoryObject::SYSV; }

int64_t to_ns(const timespec& time) { return time.tv_sec * 1'000'000'000ll + time.tv_nsec; }

}  // namespace

void ObjectTable::begin(VersionWriter& version) {
  version_ = &version;
  precopied_.clear();
  start_pass();
}

void ObjectTable::start_pass() {
  seen_.clear();
  mappers_.clear();
  precopy_.clear();
  for (auto& [key, object] : objects_) object->end_round();
}

SharedObject& ObjectTable::object(const ObjectKey& key) {
  auto& object = objects_[key];
  if (!object) object = std::make_unique<SharedObject>(next_id_++, key);
  seen_.insert(key);
  if (version_ != nullptr && !object->begun()) object->begin(*version_);
  return *object;
}

SharedObject& ObjectTable::object(const ObjectKey& key, const std::string& target,
                                  const std::function<UniqueFd()>& open) {
  const auto known = objects_.find(key);
  if (known != objects_.end() && known->second->has_source()) return object(key);
  UniqueFd fd = open();
  if (!fd && errno == ENOENT)  // unmapped or closed since it was seen
    throw_error(ErrorKind::kGone, "{} is gone before its content could be read", target);
  if (!fd) throw_errno("cannot open {} to read its content", target);
  SharedObject& found = object(key);
  found.set_source(std::move(fd), target);
  return found;
}

uint32_t ObjectTable::note_mapping(const MemoryMapping& mapping, PageTracker& tracker, pid_t pid) {
  SharedObject& found = object(*mapping.object, mapping.maps.path, [&] { return open_mapped_file(pid, mapping.maps); });
  const uint64_t bytes = mapping.maps.end - mapping.maps.start;
  found.add_window({mapping.maps.offset, mapping.maps.offset + bytes});
  if (is_segment(*mapping.object) && mapping.kind == pb::Mapping::OBJECT) {
    mappers_[*mapping.object].push_back({&tracker, {mapping.maps.start, mapping.maps.end}, mapping.maps.offset});
  }
  return found.id();
}

uint32_t ObjectTable::note_file(int local_fd, const std::string& target) {
  struct stat status {};
  if (::fstat(local_fd, &status) != 0) throw_errno("cannot look at {}", target);
  // Opened anew: the descriptor may be write-only.
  const auto open = [local_fd] {
    return UniqueFd(::open(fmt::format("/proc/self/fd/{}", local_fd).c_str(), O_RDONLY | O_CLOEXEC));
  };
  return object(object_key_of_file(status, target), target, open).id();
}

bool ObjectTable::collect_mappers(const SharedObject& object, std::vector<Range>& written) {
  bool tracked = true;
  for (const Mapper& mapper : mappers_[object.key()]) {
    std::vector<PageRange> pages;
    if (!mapper.tracker->collect(mapper.range.start, mapper.range.end, MappingClass::kShared, true, pages)) {
      tracked = false;
    }
    for (const PageRange& page : pages) {
      written.push_back(
          {page.start - mapper.range.start + mapper.offset, page.end - mapper.range.start + mapper.offset});
    }
  }
  normalise(written);
  return tracked;
}

// ipc/shm.c: attach, detach and fork set atime or dtime, the last pid and the count; shmctl sets ctime. Times are whole
// seconds of the coarse clock, so one that is not in the past yet may hide a later event.
std::optional<SysvStamp> ObjectTable::take_stamp(const SharedObject& object) const {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  for (const IpcObject& segment : segments_) {
    if (segment.kind != IpcKind::kShm || segment.id != static_cast<int>(object.key().ino)) continue;
    SysvStamp stamp;
    stamp.attached = segment.attached;
    stamp.attach_time = segment.attach_time;
    stamp.detach_time = segment.detach_time;
    stamp.create_time = segment.create_time;
    stamp.last_pid = segment.last;
    stamp.mtime_ns = to_ns(object.status().st_mtim);
    stamp.ctime_ns = to_ns(object.status().st_ctim);
    stamp.settled = stamp.attach_time < now.tv_sec && stamp.detach_time < now.tv_sec &&
                    stamp.create_time < now.tv_sec && stamp.mtime_ns + kSettledNs < to_ns(now) &&
                    stamp.ctime_ns + kSettledNs < to_ns(now);
    return stamp;
  }
  return std::nullopt;
}

bool ObjectTable::exact(const SharedObject& object, const std::optional<SysvStamp>& now) const {
  const auto mappers = mappers_.find(object.key());
  return object.content_known() && now && object.stamp && object.stamp->settled && now->same_as(*object.stamp) &&
         mappers != mappers_.end() && now->attached == mappers->second.size();
}

uint64_t ObjectTable::precopy_collect() {
  uint64_t bytes = 0;
  list_segments();
  for (const ObjectKey& key : seen_) {
    if (!is_segment(key)) continue;
    SharedObject& object = *objects_.at(key);
    std::vector<Range> written;
    if (!object.stamp) {
      object.stamp = take_stamp(object);  // before arming
      precopied_.erase(key);              // what was written before is not known: look at everything
      unknown_.insert(key);
    }
    collect_mappers(object, written);
    if (object.content_known()) bytes += total_bytes(written);
    precopy_[key] = std::move(written);
  }
  return bytes;
}

void ObjectTable::precopy_copy() {
  for (const ObjectKey& key : seen_) {
    SharedObject& object = *objects_.at(key);
    if (is_segment(key) && object.content_known() && unknown_.count(key) == 0) {
      object.update(precopy_[key], nullptr);
    } else if (precopied_.count(key) == 0) {
      object.update_all(nullptr);
    }
    precopied_.insert(key);
  }
  unknown_.clear();
}

void ObjectTable::list_segments() {
  const bool any = std::any_of(seen_.begin(), seen_.end(), is_segment);
  segments_ = any ? list_ipc_objects() : std::vector<IpcObject>();
}

void ObjectTable::save_detached_segment(pb::ShmSegment& segment, StagingArena& arena) {
  const ObjectKey key{pb::MemoryObject::SYSV, 0, static_cast<uint64_t>(segment.perm().id())};
  segment.set_object(object(key).id());
  if (object(key).has_source()) return;
  const AttachedSegment attached(segment.perm().id(), false);
  MapsEntry entry;
  entry.start = reinterpret_cast<uint64_t>(attached.bytes().data());
  entry.end = entry.start + page_up(attached.bytes().size());
  // Read through its file, not the mapping: a read fault would allocate the pages of holes.
  SharedObject& found =
      object(key, fmt::format("/SYSV{:08x}", segment.perm().key()), [&] { return open_mapped_file(getpid(), entry); });
  found.stamp.reset();
  found.update_all(&arena);
}

void ObjectTable::collect(StagingArena& arena, bool distrust, pb::Capsule& capsule) {
  list_segments();
  for (const ObjectKey& key : seen_) {
    SharedObject& object = *objects_.at(key);
    if (!is_segment(key)) {
      object.update_all(&arena);
      continue;
    }
    std::optional<SysvStamp> now = take_stamp(object);
    std::vector<Range> written;
    const bool tracked = collect_mappers(object, written);
    if (tracked && !distrust && exact(object, now)) {
      object.update(written, &arena);
    } else {
      object.update_all(&arena);
    }
    object.stamp = now;
  }
  for (pb::ShmSegment& segment : *capsule.mutable_sysv()->mutable_segments()) save_detached_segment(segment, arena);
  for (const ObjectKey& key : seen_) objects_.at(key)->fill(*capsule.add_objects());
}

void ObjectTable::write() {
  std::erase_if(objects_, [&](const auto& entry) {
    if (seen_.count(entry.first) != 0) return false;
    entry.second->close_unused();
    return true;
  });
  for (auto& [key, object] : objects_) {
    object->write();
    object->end_round();
  }
  version_ = nullptr;
  mappers_.clear();
}

void ObjectTable::abandon() {
  for (auto& [key, object] : objects_) {
    object->forget();
    object->end_round();
  }
  version_ = nullptr;
  mappers_.clear();
}

void ObjectTable::reload(const VersionReader& version) {
  for (auto& [key, object] : objects_) object->reload(version);
}

void ObjectTable::adopt(const VersionReader& version, uint32_t id, const MemoryMapping& mapping, PageTracker& tracker,
                        pid_t pid) {
  const ObjectKey& key = *mapping.object;
  auto& found = objects_[key];
  const bool first = !found;
  if (first) found = std::make_unique<SharedObject>(id, key);
  note_mapping(mapping, tracker, pid);
  if (first) found->adopt(PageStoreReader(version, found->store()).take_index());
}

void ObjectTable::resume(const VersionReader& version, const pb::MemoryObject& saved) {
  const bool segment = saved.kind() == pb::MemoryObject::SYSV;
  const ObjectKey key{saved.kind(), segment ? 0 : saved.dev(),
                      segment ? static_cast<uint64_t>(saved.shmid()) : saved.ino()};
  for (const auto& [other, object] : objects_) {
    if (other == key || object->id() == saved.id())
      throw_error(ErrorKind::kImage, "version {}: the memory objects {} and {} are the same", version.version(),
                  object->id(), saved.id());
  }
  auto object = std::make_unique<SharedObject>(saved.id(), key);
  next_id_ = std::max(next_id_, saved.id() + 1);
  PageStoreReader store(version, object->store());
  PageHashes hashes;
  store.load_hashes(hashes);
  object->resume(store.take_index(), hashes);
  objects_[key] = std::move(object);
}

void ObjectTable::finish_adopt(uint32_t highest_id) {
  next_id_ = std::max(next_id_, highest_id + 1);
  list_segments();
  for (const ObjectKey& key : seen_) {
    if (!is_segment(key)) continue;
    SharedObject& object = *objects_.at(key);
    object.stamp = take_stamp(object);
    std::vector<Range> written;
    collect_mappers(object, written);
  }
  start_pass();
}

}  // namespace icp
