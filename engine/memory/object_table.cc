// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/object_table.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <spdlog/spdlog.h>
#include <sys/vfs.h>
#include <time.h>

#include <algorithm>

#include "engine/base/check.h"
#include "engine/base/mutex.h"
#include "engine/base/parallel.h"
#include "engine/base/times.h"
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

void ObjectTable::Entry::end_pass() {
  seen = open = whole_file = false;
  mappers.clear();
  written.reset();
  object->end_round();
}

void ObjectTable::Entry::check() const {
  const auto name = [this] { return fmt::format("memory object {} ({})", object->id(), object->target()); };
  ICP_CHECK(seen || (!open && !whole_file && mappers.empty() && !written), "{} has parts that nobody has noted",
            name());
  ICP_CHECK(!seen || object->has_source() || is_segment(object->key()), "{} was noted and not opened", name());
  ICP_CHECK(!whole_file || object->key().kind == pb::MemoryObject::MAPPED_FILE, "{} is saved as a file", name());
  ICP_CHECK(!unknown || written, "{} is not tracked in this pass", name());
  for (const Mapper& mapper : mappers) {
    ICP_CHECK(mapper.range.start < mapper.range.end && mapper.range.start % kPageSize == 0 &&
                  mapper.range.end % kPageSize == 0 && mapper.offset % kPageSize == 0,
              "{}: process {} maps it at {:x}-{:x} from {:x} on", name(), mapper.pid, mapper.range.start,
              mapper.range.end, mapper.offset);
  }
}

std::vector<ObjectTable::Entry*> ObjectTable::seen() {
  std::vector<Entry*> found;
  for (auto& [key, entry] : entries_) {
    entry.check();
    if (entry.seen) found.push_back(&entry);
  }
  return found;
}

void ObjectTable::disarm() {
  for (auto& [key, entry] : entries_) entry.armed.reset();
}

void ObjectTable::for_each(const std::function<void(const SharedObject&)>& visit) const {
  for (const auto& [key, entry] : entries_) visit(*entry.object);
}

void ObjectTable::begin(VersionWriter& version) {
  version_ = &version;
  for (auto& [key, entry] : entries_) entry.precopied = false;
  watch_.begin_version();
  start_pass();
}

void ObjectTable::start_pass() {
  for (auto& [key, entry] : entries_) {
    entry.end_pass();
    entry.unknown = false;
  }
  // A mapping that comes and goes between here and the reading of the mappings is seen by the next pass, which then
  // looks at everything. The count is of before anything is armed: the module arms all of a process at the beginning of
  // its pass.
  watch_.start_pass();
}

ObjectTable::Entry& ObjectTable::entry(const ObjectKey& key) {
  Entry& entry = entries_[key];
  if (!entry.object) entry.object = std::make_unique<SharedObject>(next_id_++, key);
  entry.seen = true;
  if (version_ != nullptr && !entry.object->begun()) entry.object->begin(*version_);
  return entry;
}

ObjectTable::Entry& ObjectTable::entry(const ObjectKey& key, const std::string& target,
                                       const std::function<std::unique_ptr<ObjectSource>()>& open) {
  const auto known = entries_.find(key);
  if (known != entries_.end() && known->second.object->has_source()) return entry(key);
  std::unique_ptr<ObjectSource> source = open();
  if (!source && errno == ENOENT)  // unmapped or closed since it was seen
    throw_error(ErrorKind::kGone, "{} is gone before its content could be read", target);
  if (!source) throw_errno("cannot open {} to read its content", target);
  Entry& found = entry(key);
  found.object->set_source(std::move(source), target);
  return found;
}

uint32_t ObjectTable::note_mapping(const MemoryMapping& mapping, PageTracker& tracker, pid_t pid) {
  const MapsEntry& maps = mapping.maps;
  Entry& found = entry(*mapping.object, maps.path, [&] { return open_object(pid, maps); });
  found.object->add_mapping(pid, maps);
  found.object->add_window({maps.offset, maps.offset + (maps.end - maps.start)});
  if (mapping.kind == pb::Mapping::OBJECT) {
    const bool writes = (mapping.flags & kVmMayWrite) != 0;
    found.mappers.push_back({&tracker, pid, {maps.start, maps.end}, maps.offset, writes});
  }
  return found.object->id();
}

uint32_t ObjectTable::note_file(int local_fd, const std::string& target) {
  struct stat status {};
  if (::fstat(local_fd, &status) != 0) throw_errno("cannot look at {}", target);
  const ObjectKey key = object_key_of_file(status, target);
  Entry& found = entry(key, target, [local_fd] { return source_of_file(local_fd); });
  found.open = true;
  return found.object->id();
}

uint32_t ObjectTable::note_open_file(int local_fd, const std::string& target) {
  struct stat status {};
  if (::fstat(local_fd, &status) != 0) throw_errno("cannot look at {}", target);
  const ObjectKey key{pb::MemoryObject::MAPPED_FILE, status.st_dev, status.st_ino};
  Entry& found = entry(key, target, [local_fd] { return source_of_file(local_fd); });
  found.open = found.whole_file = true;
  found.object->add_window({0, kWholeFile});
  return found.object->id();
}

// Whether nothing has been written to an open file since it was read. What maps it writes without notice.
bool ObjectTable::is_as_read(const Entry& entry) {
  const SharedObject& object = *entry.object;
  if (!entry.stamp || !entry.mappers.empty() || !object.content_known()) return false;
  const std::optional<int64_t> changed = settled_time(object.status());
  return changed && *changed == entry.stamp->changed_ns && object.status().st_size == entry.stamp->size;
}

// Processes side by side: each scan costs some 0.6 ms a gigabyte, whatever was written.
bool ObjectTable::collect_mappers(const Armed& armed, std::vector<Range>& written) {
  const std::vector<Mapper>& mappers = armed.mappers;  // those of one tracker together
  std::vector<size_t> first;
  for (size_t i = 0; i < mappers.size(); ++i)
    if (i == 0 || mappers[i].tracker != mappers[i - 1].tracker) first.push_back(i);
  Mutex mutex;
  bool tracked = true;
  parallel_for(first.size(), first.size(), [&]() -> ItemWork {
    return [&](size_t number) {
      for (size_t i = first[number]; i < mappers.size() && mappers[i].tracker == mappers[first[number]].tracker; ++i) {
        const auto& [tracker, pid, range, offset, writes] = mappers[i];
        if (!writes) continue;
        std::vector<PageRange> pages;
        const bool known = tracker->collect(range.start, range.end, MappingClass::kShared, true, pages);
        const MutexLock lock(mutex);
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
bool ObjectTable::can_be_tracked(const Entry& entry) const {
  const SharedObject& object = *entry.object;
  if (is_segment(object.key())) return true;
  if (!watch_.recording() || !object.has_source() || entry.mappers.empty()) return false;
  struct statfs system {};
  if (::fstatfs(object.source(), &system) != 0 || system.f_type != TMPFS_MAGIC) return false;
  for (const Mapper& mapper : entry.mappers)
    if (object.data_bytes() < mapper.range.bytes() / kSparse) return false;
  return true;
}

void ObjectTable::find_others() {
  std::vector<WatchScope::Candidate> candidates;
  for (const Entry* entry : seen()) {
    const SharedObject& object = *entry->object;
    const InodeId inode = inode_id(object.status());
    if (!watch_.is_checked(inode) && can_be_tracked(*entry))
      candidates.push_back({inode, object.source(), writes_are_noticed(object.key())});
  }
  watch_.find_others(candidates);
}

// The objects of the pass are known now.
void ObjectTable::start_arming() {
  list_segments();
  if (!segments_.empty()) watch_.count_changes();
  std::map<InodeId, int> inodes;
  for (const auto& [key, entry] : entries_) {
    if (entry.seen || (entry.armed && entry.object->has_source()))
      inodes.emplace(inode_id(entry.object->status()), entry.object->source());
  }
  watch_.set_inodes(inodes);
}

ObjectTable::Found ObjectTable::arm(Entry& entry) {
  const SharedObject& object = *entry.object;
  Armed now;
  now.mappers = entry.mappers;
  std::sort(now.mappers.begin(), now.mappers.end());
  if (is_segment(object.key())) now.stamp = take_stamp(object);
  now.changes = watch_.count();
  if (!now.changes) now.time = settled_time(object.status());
  now.alone = alone(object);
  Found found;
  const bool tracked = collect_mappers(now, found.written);
  found.all = tracked && object.content_known() && entry.armed && saw_all(object, *entry.armed, now);
  now.changes = watch_.count_at_pass();
  entry.armed = std::move(now);
  return found;
}

bool ObjectTable::saw_all(const SharedObject& object, const Armed& before, const Armed& now) const {
  if (before.changes != now.changes || (!before.changes && (!before.time || before.time != now.time))) return false;
  if (before.stamp && before.stamp->settled && now.stamp && now.stamp->same_as(*before.stamp) &&
      now.stamp->attached == now.mappers.size()) {
    return true;
  }
  const bool forked = std::any_of(before.mappers.begin(), before.mappers.end(),
                                  [&](const Mapper& mapper) { return watch_.has_forked(mapper.pid); });
  return before.alone && watch_.untouched(inode_id(object.status())) && !forked && before.mappers == now.mappers;
}

uint64_t ObjectTable::precopy_collect() {
  uint64_t bytes = 0;
  start_arming();
  find_others();
  for (Entry* entry : seen()) {
    const SharedObject& object = *entry->object;
    if (!can_be_tracked(*entry) || (!is_segment(object.key()) && !alone(object))) continue;
    Found found = arm(*entry);
    if (!found.all) {
      entry->precopied = false;  // what was written before is not known: look at everything
      entry->unknown = true;
    }
    bytes += found.all ? total_bytes(found.written) : object.data_bytes();
    entry->written = std::move(found.written);
  }
  watch_.forget_seen();
  return bytes;
}

void ObjectTable::precopy_copy(uint64_t staging) {
  const bool all_in_stop = untracked_bytes() <= staging;
  for (Entry* entry : seen()) {
    SharedObject& object = *entry->object;
    if (!entry->written && all_in_stop && !entry->whole_file) continue;
    if (entry->whole_file && is_as_read(*entry)) continue;
    if (const auto changed = settled_time(object.status()); entry->whole_file && changed && !entry->precopied)
      entry->stamp = {*changed, object.status().st_size};
    if (entry->written && !entry->unknown) {
      object.update(*entry->written, nullptr);
    } else if (!entry->precopied) {
      object.update_all(nullptr);
    }
    entry->precopied = true;
    entry->unknown = false;
  }
}

uint64_t ObjectTable::untracked_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [key, entry] : entries_)
    if (entry.seen && !entry.written && !entry.whole_file) bytes += entry.object->data_bytes();
  return bytes;
}

IpcAccess& ObjectTable::ipc() {
  if (!ipc_) ipc_ = IpcAccess::enter(current_ipc_namespace());
  return *ipc_;
}

void ObjectTable::list_segments() {
  const bool any = std::any_of(entries_.begin(), entries_.end(),
                               [](const auto& one) { return one.second.seen && is_segment(one.first); });
  segments_ = any ? ipc().list() : std::vector<IpcObject>();
}

void ObjectTable::save_detached_segment(pb::ShmSegment& segment, StagingArena& arena) {
  const ObjectKey key{pb::MemoryObject::SYSV, 0, static_cast<uint64_t>(segment.perm().id())};
  Entry& known = entry(key);
  segment.set_object(known.object->id());
  if (known.object->has_source()) return;
  Entry& found = entry(key, fmt::format("/SYSV{:08x}", segment.perm().key()), [&] {
    return ObjectSource::of_segment(ipc().open_segment(segment.perm().id()), segment.perm().id());
  });
  found.armed.reset();
  found.object->update_all(&arena);
}

// A name made or removed by others between two looks changes what an inode is taken for.
void ObjectTable::check_inodes() const {
  std::map<InodeId, const SharedObject*> known;
  for (const auto& [key, entry] : entries_) {
    if (!entry.seen || is_segment(key)) continue;
    if (known.emplace(InodeId{key.dev, key.ino}, entry.object.get()).second) continue;
    throw Error(ErrorKind::kBusy,
                fmt::format("{} lost or got a name while it was looked at, or its names are not all found",
                            entry.object->target()),
                0, "try again in a moment");
  }
}

void ObjectTable::collect(StagingArena& arena, bool distrust, int root, pb::Capsule& capsule) {
  check_inodes();
  start_arming();
  watch_.take();
  read_whole_ = 0;
  for (Entry* entry : seen()) {
    SharedObject& object = *entry->object;
    if (entry->whole_file && is_as_read(*entry)) continue;
    Found found;
    if (is_segment(object.key()) || entry->armed) found = arm(*entry);
    // Descriptors write behind the page tables.
    if (found.all && !distrust && (writes_are_noticed(object.key()) || !entry->open)) {
      object.update(found.written, &arena);
    } else {
      read_whole_ += object.data_bytes();
      object.update_all(&arena);
    }
  }
  for (pb::ShmSegment& segment : *capsule.mutable_sysv()->mutable_segments()) save_detached_segment(segment, arena);
  for (const Entry* entry : seen()) entry->object->fill(root, *capsule.add_objects());
  end_watch();
}

// From here on there are only the counts.
void ObjectTable::end_watch() {
  watch_.end();
  for (auto& [key, entry] : entries_) {
    if (!is_segment(key)) entry.armed.reset();
    if (entry.armed) entry.armed->alone = false;
  }
}

void ObjectTable::write() {
  std::erase_if(entries_, [](auto& one) {
    if (one.second.seen) return false;
    one.second.object->close_unused();
    return true;
  });
  for (auto& [key, entry] : entries_) {
    entry.object->write();
    entry.end_pass();
  }
  version_ = nullptr;
}

void ObjectTable::abandon() {
  for (auto& [key, entry] : entries_) {
    entry.object->forget();
    entry.end_pass();
    entry.stamp.reset();
  }
  disarm();
  end_watch();
  version_ = nullptr;
}

void ObjectTable::reload(const VersionReader& version) {
  for (auto& [key, entry] : entries_) entry.object->reload(version);
}

void ObjectTable::adopt(const VersionReader& version, uint32_t id, const MemoryMapping& mapping, PageTracker& tracker,
                        pid_t pid) {
  const ObjectKey& key = *mapping.object;
  const bool first = entries_.count(key) == 0;
  if (first) entries_[key].object = std::make_unique<SharedObject>(id, key);
  note_mapping(mapping, tracker, pid);
  SharedObject& object = *entries_.at(key).object;
  if (first) object.adopt(PageStoreReader(version, object.store()).take_index());
}

void ObjectTable::resume(const VersionReader& version, const pb::MemoryObject& saved) {
  const bool segment = saved.kind() == pb::MemoryObject::SYSV;
  const ObjectKey key{saved.kind(), segment ? 0 : saved.dev(),
                      segment ? static_cast<uint64_t>(saved.shmid()) : saved.ino()};
  for (const auto& [other, entry] : entries_) {
    if (other == key || entry.object->id() == saved.id())
      throw_error(ErrorKind::kImage, "version {}: the memory objects {} and {} are the same", version.version(),
                  entry.object->id(), saved.id());
  }
  auto object = std::make_unique<SharedObject>(saved.id(), key);
  next_id_ = std::max(next_id_, saved.id() + 1);
  PageStoreReader store(version, object->store());
  PageHashes hashes;
  store.load_hashes(hashes);
  object->resume(store.take_index(), hashes);
  entries_[key].object = std::move(object);
}

void ObjectTable::finish_adopt(uint32_t highest_id) {
  next_id_ = std::max(next_id_, highest_id + 1);
  start_arming();
  watch_.set_count_at_pass();  // they are stopped
  for (Entry* entry : seen())
    if (is_segment(entry->object->key())) arm(*entry);
  start_pass();
}

}  // namespace icp
