// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/object_table.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <spdlog/spdlog.h>
#include <sys/vfs.h>
#include <time.h>

#include <algorithm>
#include <mutex>

#include "engine/base/error.h"
#include "engine/base/parallel.h"
#include "engine/base/times.h"
#include "engine/broker/broker.h"
#include "engine/memory/mapped_file.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

// An object of which less is in memory is not worth the page tables of write protection over all of it.
constexpr uint64_t kSparse = 8;
constexpr uint64_t kWholeFile = 1ull << 46;  // bytes: more than any has

bool is_segment(const ObjectKey& key) { return key.kind == pb::MemoryObject::SYSV; }

// On the kernel's own mount nobody is told of writes through descriptors (since 6.14), but nothing there can be opened
// by a name.
bool writes_are_noticed(const ObjectKey& key) {
  return !is_segment(key) && key.kind != pb::MemoryObject::MEMFD && key.kind != pb::MemoryObject::ANON_SHARED;
}

// Of the inode's last change: a write through a descriptor, a hole punched, but also each first write to a protected
// page. Nothing while it may hide a later one: the clock's ticks are coarse.
std::optional<int64_t> settled_time(const struct stat& status) {
  const int64_t changed = std::max(nanoseconds(status.st_mtim), nanoseconds(status.st_ctim));
  return changed + kFileTimeStep < now_ns(CLOCK_REALTIME_COARSE) ? std::optional(changed) : std::nullopt;
}

std::unique_ptr<ObjectSource> source_of(UniqueFd fd) {
  return fd ? ObjectSource::of_descriptor(std::move(fd)) : nullptr;
}

// Opened anew: the descriptor may be write-only.
std::unique_ptr<ObjectSource> source_of_file(int local_fd) {
  return source_of(UniqueFd(::open(fmt::format("/proc/self/fd/{}", local_fd).c_str(), O_RDONLY | O_CLOEXEC)));
}

// What a mapping maps; null and errno when it cannot be read.
std::unique_ptr<ObjectSource> open_object(pid_t pid, const MapsEntry& maps) {
  UniqueFd fd = open_mapped_file(pid, maps);
  if (!fd && errno == EPERM && maps.shared) return ObjectSource::of_mapping(pid, maps);
  return source_of(std::move(fd));
}

}  // namespace

bool SysvStamp::same_as(const SysvStamp& other) const {
  return attached == other.attached && attach_time == other.attach_time && detach_time == other.detach_time &&
         create_time == other.create_time && last_pid == other.last_pid;
}

void ObjectTable::begin(VersionWriter& version) {
  version_ = &version;
  precopied_.clear();
  checked_.clear();
  others_.clear();
  start_pass();
}

void ObjectTable::make_watch() {
  if (watch_ && watch_->outdated()) drop_watch();
  if (watch_ || watch_failed_) return;
  try {
    watch_ = ObjectWatch::make();
  } catch (const Error& error) {
    without_watch(error);
  }
}

void ObjectTable::drop_watch() {
  watch_.reset();
  armed_.clear();
  changes_.reset();
}

void ObjectTable::without_watch(const Error& error) {
  drop_watch();
  watch_failed_ = true;
  spdlog::info("shared memory that is written is read whole in each stop: {}", error.what());
}

void ObjectTable::watch(std::vector<pid_t> processes) {
  if (watch_ && watch_->recording()) return;
  make_watch();
  if (!watch_) return;
  try {
    watch_->begin();
  } catch (const Error& error) {
    without_watch(error);
  }
  watched_processes_ = std::move(processes);
  watched_ = {};
}

void ObjectTable::start_pass() {
  seen_.clear();
  open_.clear();
  whole_files_.clear();
  mappers_.clear();
  precopy_.clear();
  for (auto& [key, object] : objects_) object->end_round();
  // A mapping that comes and goes between here and the reading of the mappings is seen by the next pass, which then
  // looks at everything.
  if (watch_ && watch_->recording()) watch_->take(watched_);
  // Before anything is armed: the module arms all of a process at the beginning of its pass.
  changes_ = watch_ ? std::optional(watch_->changes()) : std::nullopt;
}

SharedObject& ObjectTable::object(const ObjectKey& key) {
  auto& object = objects_[key];
  if (!object) object = std::make_unique<SharedObject>(next_id_++, key);
  seen_.insert(key);
  if (version_ != nullptr && !object->begun()) object->begin(*version_);
  return *object;
}

SharedObject& ObjectTable::object(const ObjectKey& key, const std::string& target,
                                  const std::function<std::unique_ptr<ObjectSource>()>& open) {
  const auto known = objects_.find(key);
  if (known != objects_.end() && known->second->has_source()) return object(key);
  std::unique_ptr<ObjectSource> source = open();
  if (!source && errno == ENOENT)  // unmapped or closed since it was seen
    throw_error(ErrorKind::kGone, "{} is gone before its content could be read", target);
  if (!source) throw_errno("cannot open {} to read its content", target);
  SharedObject& found = object(key);
  found.set_source(std::move(source), target);
  return found;
}

uint32_t ObjectTable::note_mapping(const MemoryMapping& mapping, PageTracker& tracker, pid_t pid) {
  SharedObject& found = object(*mapping.object, mapping.maps.path, [&] { return open_object(pid, mapping.maps); });
  found.add_mapping(pid, mapping.maps);
  const uint64_t bytes = mapping.maps.end - mapping.maps.start;
  found.add_window({mapping.maps.offset, mapping.maps.offset + bytes});
  if (mapping.kind == pb::Mapping::OBJECT) {
    mappers_[*mapping.object].push_back({&tracker,
                                         pid,
                                         {mapping.maps.start, mapping.maps.end},
                                         mapping.maps.offset,
                                         (mapping.flags & kVmMayWrite) != 0});
  }
  return found.id();
}

uint32_t ObjectTable::note_file(int local_fd, const std::string& target) {
  struct stat status {};
  if (::fstat(local_fd, &status) != 0) throw_errno("cannot look at {}", target);
  const ObjectKey key = object_key_of_file(status, target);
  open_.insert(key);
  return object(key, target, [local_fd] { return source_of_file(local_fd); }).id();
}

uint32_t ObjectTable::note_open_file(int local_fd, const std::string& target) {
  struct stat status {};
  if (::fstat(local_fd, &status) != 0) throw_errno("cannot look at {}", target);
  const ObjectKey key{pb::MemoryObject::MAPPED_FILE, status.st_dev, status.st_ino};
  SharedObject& found = object(key, target, [local_fd] { return source_of_file(local_fd); });
  open_.insert(key);
  whole_files_.insert(key);
  found.add_window({0, kWholeFile});
  return found.id();
}

// Whether nothing has been written to an open file since it was read. What maps it writes without notice.
bool ObjectTable::is_as_read(const SharedObject& object) const {
  const auto stamp = stamps_.find(object.key());
  if (stamp == stamps_.end() || mappers_.count(object.key()) != 0 || !object.content_known()) return false;
  const std::optional<int64_t> changed = settled_time(object.status());
  return changed && *changed == stamp->second.changed_ns && object.status().st_size == stamp->second.size;
}

// Processes side by side: each scan costs some 0.6 ms a gigabyte, whatever was written.
bool ObjectTable::collect_mappers(const Armed& armed, std::vector<Range>& written) {
  const std::vector<Mapper>& mappers = armed.mappers;  // those of one tracker together
  std::vector<size_t> first;
  for (size_t i = 0; i < mappers.size(); ++i)
    if (i == 0 || mappers[i].tracker != mappers[i - 1].tracker) first.push_back(i);
  std::mutex mutex;
  bool tracked = true;
  parallel_for(first.size(), first.size(), [&]() -> ItemWork {
    return [&](size_t number) {
      for (size_t i = first[number]; i < mappers.size() && mappers[i].tracker == mappers[first[number]].tracker; ++i) {
        const auto& [tracker, pid, range, offset, writes] = mappers[i];
        if (!writes) continue;
        std::vector<PageRange> pages;
        const bool known = tracker->collect(range.start, range.end, MappingClass::kShared, true, pages);
        const std::lock_guard lock(mutex);
        if (!known) tracked = false;
        for (const PageRange& page : pages)
          written.push_back({page.start - range.start + offset, page.end - range.start + offset});
      }
    };
  });
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
    stamp.settled = stamp.attach_time < now.tv_sec && stamp.detach_time < now.tv_sec && stamp.create_time < now.tv_sec;
    return stamp;
  }
  return std::nullopt;
}

// Protection covers all that is mapped, pages that are not there included, and costs page tables.
bool ObjectTable::can_be_tracked(const SharedObject& object) const {
  if (is_segment(object.key())) return true;
  const auto mappers = mappers_.find(object.key());
  if (!watch_ || !watch_->recording() || !object.has_source() || mappers == mappers_.end()) return false;
  struct statfs system {};
  if (::fstatfs(object.source(), &system) != 0 || system.f_type != TMPFS_MAGIC) return false;
  for (const Mapper& mapper : mappers->second)
    if (object.data_bytes() < mapper.range.bytes() / kSparse) return false;
  return true;
}

void ObjectTable::find_others() {
  if (!watch_ || !watch_->recording()) return;
  std::map<InodeId, int> all, without_notice;  // with a descriptor
  for (const ObjectKey& key : seen_) {
    const SharedObject& object = *objects_.at(key);
    const InodeId inode = inode_id(object.status());
    if (checked_.count(inode) != 0 || !can_be_tracked(object)) continue;
    all.emplace(inode, object.source());
    if (!writes_are_noticed(key)) {
      without_notice.emplace(inode, object.source());
    } else if (!watch_->watch_writes(inode, fmt::format("/proc/self/fd/{}", object.source()))) {
      others_.insert(inode);
    }
  }
  if (all.empty()) return;
  try {
    others_.merge(broker().mapped_outside(all, watched_processes_));
    if (!without_notice.empty()) others_.merge(broker().held_open(without_notice));
  } catch (const Error& error) {
    without_watch(error);
    return;
  }
  for (const auto& [inode, source] : all) checked_.insert(inode);
}

// The objects of the pass are known now.
void ObjectTable::start_arming() {
  list_segments();
  if (!segments_.empty() && !(watch_ && watch_->recording())) make_watch();
  if (!watch_) return;
  std::map<InodeId, int> inodes;
  for (const ObjectKey& key : seen_) inodes.emplace(inode_id(objects_.at(key)->status()), objects_.at(key)->source());
  for (const auto& [key, armed] : armed_)
    if (const auto object = objects_.find(key); object != objects_.end() && object->second->has_source())
      inodes.emplace(inode_id(object->second->status()), object->second->source());
  try {
    watch_->set_inodes(inodes);
  } catch (const Error& error) {
    without_watch(error);
  }
}

bool ObjectTable::alone(const SharedObject& object) const {
  const InodeId inode = inode_id(object.status());
  return watch_ && watch_->recording() && checked_.count(inode) != 0 && others_.count(inode) == 0;
}

ObjectTable::Found ObjectTable::arm(const SharedObject& object) {
  Armed now;
  now.mappers = mappers_[object.key()];
  std::sort(now.mappers.begin(), now.mappers.end());
  if (is_segment(object.key())) now.stamp = take_stamp(object);
  if (watch_) {
    now.changes = watch_->changes();
  } else {
    now.time = settled_time(object.status());
  }
  now.alone = alone(object);
  Found found;
  const bool tracked = collect_mappers(now, found.written);
  const auto before = armed_.find(object.key());
  found.all = tracked && object.content_known() && before != armed_.end() && saw_all(object, before->second, now);
  now.changes = changes_;
  armed_[object.key()] = std::move(now);
  return found;
}

bool ObjectTable::saw_all(const SharedObject& object, const Armed& before, const Armed& now) const {
  if (before.changes != now.changes || (!before.changes && (!before.time || before.time != now.time))) return false;
  if (before.stamp && before.stamp->settled && now.stamp && now.stamp->same_as(*before.stamp) &&
      now.stamp->attached == now.mappers.size()) {
    return true;
  }
  const bool forked = std::any_of(before.mappers.begin(), before.mappers.end(),
                                  [&](const Mapper& mapper) { return watched_.forked.count(mapper.pid) != 0; });
  return before.alone && watched_.complete && watched_.touched.count(inode_id(object.status())) == 0 && !forked &&
         before.mappers == now.mappers;
}

uint64_t ObjectTable::precopy_collect() {
  uint64_t bytes = 0;
  start_arming();
  find_others();
  for (const ObjectKey& key : seen_) {
    SharedObject& object = *objects_.at(key);
    if (!can_be_tracked(object) || (!is_segment(key) && !alone(object))) continue;
    Found found = arm(object);
    if (!found.all) {
      precopied_.erase(key);  // what was written before is not known: look at everything
      unknown_.insert(key);
    }
    bytes += found.all ? total_bytes(found.written) : object.data_bytes();
    precopy_[key] = std::move(found.written);
  }
  watched_ = {};
  return bytes;
}

void ObjectTable::precopy_copy(uint64_t staging) {
  const bool all_in_stop = untracked_bytes() <= staging;
  for (const ObjectKey& key : seen_) {
    SharedObject& object = *objects_.at(key);
    const auto written = precopy_.find(key);
    const bool whole_file = whole_files_.count(key) != 0;
    if (written == precopy_.end() && all_in_stop && !whole_file) continue;
    if (whole_file && is_as_read(object)) continue;
    if (const auto changed = settled_time(object.status()); whole_file && changed && precopied_.count(key) == 0)
      stamps_[key] = {*changed, object.status().st_size};
    if (written != precopy_.end() && unknown_.count(key) == 0) {
      object.update(written->second, nullptr);
    } else if (precopied_.count(key) == 0) {
      object.update_all(nullptr);
    }
    precopied_.insert(key);
  }
  unknown_.clear();
}

uint64_t ObjectTable::untracked_bytes() const {
  uint64_t bytes = 0;
  for (const ObjectKey& key : seen_)
    if (precopy_.count(key) == 0 && whole_files_.count(key) == 0) bytes += objects_.at(key)->data_bytes();
  return bytes;
}

IpcAccess& ObjectTable::ipc() {
  if (!ipc_) ipc_ = IpcAccess::enter(current_ipc_namespace());
  return *ipc_;
}

void ObjectTable::list_segments() {
  const bool any = std::any_of(seen_.begin(), seen_.end(), is_segment);
  segments_ = any ? ipc().list() : std::vector<IpcObject>();
}

void ObjectTable::save_detached_segment(pb::ShmSegment& segment, StagingArena& arena) {
  const ObjectKey key{pb::MemoryObject::SYSV, 0, static_cast<uint64_t>(segment.perm().id())};
  segment.set_object(object(key).id());
  if (object(key).has_source()) return;
  SharedObject& found = object(key, fmt::format("/SYSV{:08x}", segment.perm().key()), [&] {
    return ObjectSource::of_segment(ipc().open_segment(segment.perm().id()), segment.perm().id());
  });
  armed_.erase(key);
  found.update_all(&arena);
}

// A name made or removed by others between two looks changes what an inode is taken for.
void ObjectTable::check_inodes() const {
  std::map<InodeId, const SharedObject*> known;
  for (const ObjectKey& key : seen_) {
    if (is_segment(key)) continue;
    const SharedObject& object = *objects_.at(key);
    if (known.emplace(InodeId{key.dev, key.ino}, &object).second) continue;
    throw Error(
        ErrorKind::kBusy,
        fmt::format("{} lost or got a name while it was looked at, or its names are not all found", object.target()), 0,
        "try again in a moment");
  }
}

void ObjectTable::collect(StagingArena& arena, bool distrust, int root, pb::Capsule& capsule) {
  check_inodes();
  start_arming();
  if (watch_ && watch_->recording()) watch_->take(watched_);
  read_whole_ = 0;
  for (const ObjectKey& key : seen_) {
    SharedObject& object = *objects_.at(key);
    if (whole_files_.count(key) != 0 && is_as_read(object)) continue;
    Found found;
    if (is_segment(key) || armed_.count(key) != 0) found = arm(object);
    // Descriptors write behind the page tables.
    if (found.all && !distrust && (writes_are_noticed(key) || open_.count(key) == 0)) {
      object.update(found.written, &arena);
    } else {
      read_whole_ += object.data_bytes();
      object.update_all(&arena);
    }
  }
  for (pb::ShmSegment& segment : *capsule.mutable_sysv()->mutable_segments()) save_detached_segment(segment, arena);
  for (const ObjectKey& key : seen_) objects_.at(key)->fill(root, *capsule.add_objects());
  end_watch();
}

// From here on there are only the counts.
void ObjectTable::end_watch() {
  if (watch_) watch_->end();
  std::erase_if(armed_, [](const auto& entry) { return !is_segment(entry.first); });
  for (auto& [key, armed] : armed_) armed.alone = false;
}

void ObjectTable::write() {
  std::erase_if(objects_, [&](const auto& entry) {
    if (seen_.count(entry.first) != 0) return false;
    entry.second->close_unused();
    stamps_.erase(entry.first);
    armed_.erase(entry.first);
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
  armed_.clear();
  stamps_.clear();
  end_watch();
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
  start_arming();
  if (watch_) changes_ = watch_->changes();  // they are stopped
  for (const ObjectKey& key : seen_)
    if (is_segment(key)) arm(*objects_.at(key));
  start_pass();
}

}  // namespace icp
