// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/shared_object.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/mutex.h"
#include "engine/base/parallel.h"
#include "engine/base/procfs.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

constexpr uint64_t kMaxObject = 1ull << 47;  // bytes; more cannot be mapped, nor described by an index
constexpr size_t kChunksWorthThread = 4;

}  // namespace

SharedObject::SharedObject(uint32_t id, const ObjectKey& key)
    : id_(id), key_(key), store_(fmt::format("object_{}", id)), index_(std::make_unique<PageIndex>()) {}

void SharedObject::set_source(std::unique_ptr<ObjectSource> source, const std::string& target) {
  status_ = source->status();
  if (static_cast<uint64_t>(status_.st_size) > kMaxObject) {
    throw_error(ErrorKind::kRefused, "{} is too large to be saved ({} bytes)", target, status_.st_size);
  }
  source_ = std::move(source);
  target_ = target.ends_with(kDeleted) ? target.substr(0, target.size() - kDeleted.size()) : target;
  source_->set_name(target_);
}

void SharedObject::add_mapping(pid_t pid, const MapsEntry& maps) {
  source_->add_mapping(pid, maps);
  status_.st_size = source_->status().st_size;
  status_.st_blocks = source_->status().st_blocks;
}

void SharedObject::add_window(Range window) { windows_.push_back(window); }

void SharedObject::end_round() {
  source_.reset();
  windows_.clear();
}

void SharedObject::begin(VersionWriter& version) {
  full_ = index_->pages() == 0;
  writer_ = std::make_unique<PageStoreWriter>(version, store_, *index_);
}

void SharedObject::forget() {
  writer_.reset();
  index_ = std::make_unique<PageIndex>();
  hashes_.clear();
  staged_.clear();
  erased_.clear();
  known_ = false;
  full_ = true;
}

SharedObject::Hash SharedObject::to_hash(const PageHash& hash) {
  return {hash.low | 1, hash.high};  // never the mark of a page of zeros
}

SharedObject::Hash SharedObject::hash_page(const std::byte* page) {
  return is_zero_page(page) ? Hash{} : to_hash(icp::hash_page(page));
}

void SharedObject::erase(Range range) {
  if (!no_writing_) erased_.push_back(range);
}

// Compares chunks, and stores what differs, or copies them to be compared later. Several threads, each with one of its
// own.
class SharedObject::Look {
 public:
  // With `ranges`, only the pages in them.
  Look(SharedObject& object, const std::vector<Range>* ranges, StagingArena* arena, Mutex& mutex)
      : object_(object), ranges_(ranges), arena_(arena), mutex_(mutex) {}

  void at_chunk(uint64_t chunk, ChunkHashes& hashes);
  void at_copy(const Staged& copy, ChunkHashes& hashes);

 private:
  void at_part(Range part, Hash* hashes);
  bool stage(Range part);
  void compare(Range part, const std::byte* bytes, Hash* hashes);
  void erase(Range range) {
    const MutexLock lock(mutex_);
    object_.erase(range);
  }

  SharedObject& object_;
  const std::vector<Range>* ranges_;
  StagingArena* arena_;
  Mutex& mutex_;  // of the arena, and of the object's lists
  std::vector<std::byte> buffer_;
};

bool SharedObject::Look::stage(Range part) {
  std::byte* room = nullptr;
  {
    const MutexLock lock(mutex_);
    room = arena_->allocate(part.bytes());
    if (room != nullptr) object_.staged_.push_back({part.start, {room, part.bytes()}});
  }
  if (room != nullptr) object_.source_->read(part.start, {room, part.bytes()});
  return room != nullptr;
}

void SharedObject::Look::compare(Range part, const std::byte* bytes, Hash* hashes) {
  uint64_t run = part.start;  // start of the run of changed pages that ends here
  const auto flush = [&](uint64_t end) {
    if (run < end && !object_.no_writing_) object_.writer_->put(run, {bytes + (run - part.start), end - run}, true);
    run = end + kPageSize;
  };
  for (uint64_t at = part.start; at < part.end; at += kPageSize, ++hashes) {
    const Hash now = hash_page(bytes + (at - part.start));
    const bool same = object_.known_ && now == *hashes;
    *hashes = now;
    if (same || now == Hash{}) {
      if (!same) erase({at, at + kPageSize});
      flush(at);
    }
  }
  flush(part.end);
}

void SharedObject::Look::at_part(Range part, Hash* hashes) {
  if (arena_ != nullptr) {
    if (stage(part)) return;
    object_.writer_->set_compressing(false);  // the processes wait
  }
  buffer_.resize(kChunk);
  object_.source_->read(part.start, {buffer_.data(), part.bytes()});
  compare(part, buffer_.data(), hashes);
}

void SharedObject::Look::at_copy(const Staged& copy, ChunkHashes& hashes) {
  compare({copy.offset, copy.offset + copy.bytes.size()}, copy.bytes.data(), &hashes[copy.offset % kChunk / kPageSize]);
}

void SharedObject::Look::at_chunk(uint64_t chunk, ChunkHashes& hashes) {
  const uint64_t size = page_up(static_cast<uint64_t>(object_.status_.st_size));
  const Range whole{chunk, std::min(chunk + kChunk, size)};
  if (whole.start >= whole.end) return;
  const auto hash_at = [&](uint64_t at) { return &hashes[(at - chunk) / kPageSize]; };
  if (ranges_ != nullptr) {
    split_by(whole, *ranges_, [&](Range part, bool inside) {
      if (inside) at_part(part, hash_at(part.start));
    });
    return;
  }
  at_part(whole, hash_at(whole.start));
  for (uint64_t at = whole.end; at < chunk + kChunk; at += kPageSize) {  // cut off since
    if (*hash_at(at) != Hash{}) erase({at, at + kPageSize});
    *hash_at(at) = {};
  }
}

void SharedObject::look_at(const std::vector<uint64_t>& chunks, const std::vector<Range>* ranges, StagingArena* arena) {
  std::vector<ChunkHashes*> hashes;
  for (const uint64_t chunk : chunks) {
    auto& found = hashes_[chunk];
    if (!found) found = std::make_unique<ChunkHashes>();
    hashes.push_back(found.get());
  }
  Mutex mutex;
  parallel_for(chunks.size(), chunks.size() / kChunksWorthThread + 1, [&]() -> ItemWork {
    return [&, look = std::make_shared<Look>(*this, ranges, arena, mutex)](size_t i) {
      look->at_chunk(chunks[i], *hashes[i]);
    };
  });
}

void SharedObject::update(const std::vector<Range>& ranges, StagingArena* arena) {
  std::vector<uint64_t> chunks;
  for (const Range& range : ranges) {
    uint64_t chunk = range.start / kChunk * kChunk;
    if (!chunks.empty()) chunk = std::max(chunk, chunks.back() + kChunk);
    for (; chunk < range.end; chunk += kChunk) chunks.push_back(chunk);
  }
  look_at(chunks, &ranges, arena);
}

void SharedObject::update_all(StagingArena* arena) {
  const auto size = static_cast<uint64_t>(status_.st_size);
  const bool windowed = key_.kind == pb::MemoryObject::MAPPED_FILE;
  if (windowed) normalise(windows_);
  uint64_t visited = 0;  // all chunks below are in `chunks` or hold no data
  const auto skip_to = [&](uint64_t chunk) {
    const auto from = hashes_.lower_bound(visited), to = hashes_.lower_bound(chunk);
    for (auto it = from; it != to; ++it) erase({it->first, it->first + kChunk});
    hashes_.erase(from, to);
  };
  if (!known_) erase({0, kMaxObject});
  std::vector<uint64_t> chunks;
  for (uint64_t at = 0; at < size;) {
    const std::optional<uint64_t> data = source_->next_data(at);
    if (!data) break;
    uint64_t chunk = *data / kChunk * kChunk;
    if (windowed) {
      const auto window =
          std::partition_point(windows_.begin(), windows_.end(), [&](const Range& r) { return r.end <= chunk; });
      if (window == windows_.end()) break;
      if (window->start / kChunk * kChunk > chunk) {
        at = window->start / kChunk * kChunk;
        continue;
      }
    }
    skip_to(chunk);
    chunks.push_back(chunk);
    at = visited = chunk + kChunk;
  }
  skip_to(kMaxObject);
  look_at(chunks, windowed ? &windows_ : nullptr, arena);
  known_ = true;
}

void SharedObject::look_at_copies() {
  Mutex mutex;
  parallel_for(staged_.size(), staged_.size() / kChunksWorthThread + 1, [&]() -> ItemWork {
    return [&, look = std::make_shared<Look>(*this, nullptr, nullptr, mutex)](size_t i) {
      look->at_copy(staged_[i], *hashes_.at(staged_[i].offset / kChunk * kChunk));
    };
  });
  staged_.clear();
}

void SharedObject::write() {
  writer_->set_compressing(true);
  look_at_copies();
  // A page erased here may have been written again by a later look, which then put it: leave alone what has a hash.
  for (const Range& range : erased_) {
    for (uint64_t chunk = range.start / kChunk * kChunk; chunk < range.end;) {
      const auto it = hashes_.lower_bound(chunk);
      const uint64_t next = it == hashes_.end() ? range.end : std::min(range.end, it->first);
      if (chunk < next) writer_->erase(std::max(chunk, range.start), next);
      if (it == hashes_.end() || it->first >= range.end) break;
      for (uint64_t at = std::max(it->first, range.start); at < std::min(it->first + kChunk, range.end);
           at += kPageSize) {
        if ((*it->second)[(at - it->first) / kPageSize] == Hash{}) writer_->erase(at, at + kPageSize);
      }
      chunk = it->first + kChunk;
    }
  }
  erased_.clear();
  writer_->finish();
  written_ = writer_->records();
  writer_.reset();
}

void SharedObject::close_unused() {
  if (writer_) writer_->finish();
  writer_.reset();
}

void SharedObject::reload(const VersionReader& version) {
  if (index_->pages() == 0) return;
  writer_.reset();
  index_ = std::make_unique<PageIndex>(PageStoreReader(version, store_).take_index());
}

void SharedObject::adopt(PageIndex index) {
  index_ = std::make_unique<PageIndex>(std::move(index));
  known_ = false;
  // Files that exist outside get the saved content only when all else is done: what they hold now says nothing.
  if (key_.kind == pb::MemoryObject::MAPPED_FILE || key_.kind == pb::MemoryObject::SHM_FILE) return;
  no_writing_ = true;
  update_all(nullptr);
  no_writing_ = false;
}

void SharedObject::resume(PageIndex index, const PageHashes& hashes) {
  index_ = std::make_unique<PageIndex>(std::move(index));
  hashes_.clear();
  index_->for_each_run([&](uint64_t address, uint64_t pages, PageLocation) {
    for (uint64_t at = address; at < address + pages * kPageSize; at += kPageSize) {
      auto& chunk = hashes_[at / kChunk * kChunk];
      if (!chunk) chunk = std::make_unique<ChunkHashes>();
      (*chunk)[at % kChunk / kPageSize] = to_hash(hashes.find(at));
    }
  });
  known_ = true;
}

// The name that it was opened or mapped by may be gone, and others may lead to it.
void SharedObject::fill_names(int root, pb::MemoryObject& out) const {
  out.set_path(target_);
  struct stat named {};
  const bool leads_back = ::fstatat(root, target_.c_str() + 1, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
                          named.st_dev == status_.st_dev && named.st_ino == status_.st_ino;
  if (leads_back && named.st_nlink == 1) return;
  std::vector<std::string> names = names_in_directory(root, directory_of(target_), status_);
  if (names.empty()) {
    throw Error(ErrorKind::kRefused, fmt::format("{} has lost this name and has another one elsewhere", target_), 0,
                "keep the name that it was opened by");
  }
  const std::string first = leads_back ? last_name_of(target_) : names.front();
  out.set_path(directory_of(target_) + first);
  for (const std::string& name : names)
    if (name != first) out.add_links(directory_of(target_) + name);
}

void SharedObject::fill(int root, pb::MemoryObject& out) const {
  out.set_id(id_);
  out.set_kind(key_.kind);
  out.set_size(static_cast<uint64_t>(status_.st_size));
  out.set_mode(status_.st_mode & 07777);
  out.set_uid(status_.st_uid);
  out.set_gid(status_.st_gid);
  out.set_index(store_);
  out.set_dev(status_.st_dev);
  out.set_ino(status_.st_ino);
  switch (key_.kind) {
    case pb::MemoryObject::SYSV:
      out.set_shmid(static_cast<int32_t>(key_.ino));
      break;
    case pb::MemoryObject::MEMFD: {
      out.set_path(target_.starts_with("/memfd:") ? target_.substr(7) : target_);
      const int seals = ::fcntl(source(), F_GET_SEALS);
      out.set_seals(seals < 0 ? 0 : static_cast<uint32_t>(seals));
      break;
    }
    case pb::MemoryObject::ANON_SHARED:
      break;
    case pb::MemoryObject::SHM_FILE:
      fill_names(root, out);
      break;
    default:
      out.set_path(target_);
  }
}

}  // namespace icp
