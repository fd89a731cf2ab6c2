// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/private_memory.h"

#include <memory>

#include "engine/base/error.h"
#include "engine/base/mutex.h"
#include "engine/base/parallel.h"

namespace icp {
namespace {

constexpr uint64_t kAddressEnd = 1ull << 47;  // of user space, 4-level page tables
constexpr uint64_t kShareBytes = 2 << 20;     // what one table of a page index describes

bool zeros_are_absent(MappingClass kind) { return kind == MappingClass::kAnonymous; }

}  // namespace

PrivateMemory::PrivateMemory(const ProcessRef& process, std::unique_ptr<PageTracker> tracker)
    : process_(process), tracker_(std::move(tracker)), index_(std::make_unique<PageIndex>()) {}

void PrivateMemory::begin(VersionWriter& version, const std::string& store) {
  full_ = index_->pages() == 0 && shared_.empty();
  if (store != store_) {
    // A store is a chain of files of one name: under a new name it starts afresh.
    if (!store_.empty()) forget();
    store_ = store;
  }
  precopied_.clear();
  writer_ = std::make_unique<PageStoreWriter>(version, store_, *index_, hashes_.get());
}

void PrivateMemory::forget() {
  writer_.reset();
  index_ = std::make_unique<PageIndex>();
  if (hashes_) hashes_->clear();
  armed_.clear();
  pending_.clear();
  precopied_.clear();
  to_copy_.clear();
  data_.clear();
  staged_.clear();
  shared_.clear();
  full_ = true;
  const MutexLock lock(put_mutex_);
  put_here_.clear();
  put_there_.clear();
}

void PrivateMemory::set_family(std::shared_ptr<SharedPages> family, const VersionReader* version) {
  family_ = std::move(family);
  if (index_->pages() == 0 || version == nullptr) return;
  PageHashes hashes;
  PageStoreReader(*version, store_).load_hashes(hashes);
  shared_ = family_->find(*index_, hashes);
  for (const Range& range : shared_) index_->erase(range.start, range.end);
}

PageIndex PrivateMemory::give_index_away() {
  PageIndex index = std::move(*index_);
  index_ = std::make_unique<PageIndex>();
  if (hashes_) hashes_->clear();
  store_.clear();
  shared_.clear();
  index.for_each_run([this](uint64_t address, uint64_t pages, PageLocation) {
    append_range(shared_, {address, address + pages * kPageSize});
  });
  return index;
}

void PrivateMemory::put(std::span<const Piece> pieces, bool zeros_are_absent) {
  if (!family_) {
    writer_->put(pieces, zeros_are_absent);
    return;
  }
  std::vector<Range> there, here;
  std::vector<Piece> rest;
  family_->put(pieces, zeros_are_absent, there, rest);
  if (!rest.empty()) writer_->put(rest, zeros_are_absent);
  for (const Piece& piece : rest) append_range(here, {piece.address, piece.address + piece.bytes.size()});
  const MutexLock lock(put_mutex_);
  put_here_.insert(put_here_.end(), here.begin(), here.end());
  put_there_.insert(put_there_.end(), there.begin(), there.end());
}

// After all of a pass has been put: each page once.
void PrivateMemory::settle_shared() {
  const MutexLock lock(put_mutex_);
  normalise(put_here_);
  normalise(put_there_);
  for (const Range& range : put_there_) writer_->erase(range.start, range.end);
  shared_ = subtract(shared_, put_here_);
  shared_.insert(shared_.end(), put_there_.begin(), put_there_.end());
  normalise(shared_);
  put_here_.clear();
  put_there_.clear();
}

// One mapping of a pass: appends its pages with data; `written` also where rule 1 distrusts the tracker. False when it
// was not tracked before.
bool PrivateMemory::collect_mapping(const MemoryMapping& mapping, std::vector<Armed>& armed,
                                    std::vector<PageRange>& pages) {
  const MappingClass kind = *mapping.tracked_as();
  const Range whole{mapping.maps.start, mapping.maps.end};
  std::vector<PageRange> found;
  const bool tracked = tracker_->collect(whole.start, whole.end, kind, true, found);
  armed.push_back({whole, kind});

  std::vector<Range> trusted;
  auto it =
      std::partition_point(armed_.begin(), armed_.end(), [&](const Armed& a) { return a.range.end <= whole.start; });
  for (; it != armed_.end() && it->range.start < whole.end; ++it) {
    if (it->kind == kind) append_range(trusted, it->range);
  }
  for (const PageRange& page : found) {
    if (page.written) {
      append_page_range(pages, page);
      continue;
    }
    split_by({page.start, page.end}, trusted, [&](Range part, bool inside) {
      append_page_range(pages, {part.start, part.end, !inside, page.zero});
    });
  }
  return tracked;
}

uint64_t PrivateMemory::precopy_collect() {
  to_copy_.clear();
  if (!tracker_->atomic_rearm()) return 0;
  const pid_t pid = process_.pid;
  const bool first = mapping_cache_.mappings().empty();
  MappingClassifier classifier(pid);
  running_.clear();
  for (const RawMapping& raw : first ? mapping_cache_.refresh(pid) : mapping_cache_.update(pid, MapsEntry::read(pid))) {
    auto mapping = classifier.classify(raw);
    if (mapping && mapping->problem.empty()) running_.push_back(std::move(*mapping));
  }
  std::vector<Armed> armed;
  std::vector<Range> written;
  tracker_->begin_pass(true, false);
  for (const MemoryMapping& mapping : running_) {
    if (!mapping.takes_private_pages()) continue;
    std::vector<PageRange> pages;
    const bool tracked = collect_mapping(mapping, armed, pages) || !tracker_->wants_mappings();
    for (const PageRange& page : pages) {
      if (!page.written) continue;
      append_range(written, {page.start, page.end});
      // What is not tracked yet would have to be copied again.
      if (!page.zero && tracked) to_copy_.push_back({{page.start, page.end}, zeros_are_absent(*mapping.tracked_as())});
    }
  }
  armed_ = std::move(armed);
  pending_.insert(pending_.end(), written.begin(), written.end());
  normalise(pending_);
  return total_bytes(written);
}

namespace {

// What one thread copies at a time: at least a chunk, cut where the tables of an index begin, so that the records of
// each table's pages are in the order of their addresses.
std::vector<std::vector<Range>> shares_of(std::span<const Range> ranges) {
  std::vector<std::vector<Range>> shares;
  uint64_t bytes = 0;
  for (Range range : ranges) {
    while (range.start < range.end) {
      if (shares.empty() ||
          (bytes >= PageCopier::kChunk && range.start / kShareBytes != shares.back().back().start / kShareBytes)) {
        shares.emplace_back();
        bytes = 0;
      }
      const uint64_t end = std::min(range.end, (range.start / kShareBytes + 1) * kShareBytes);
      shares.back().push_back({range.start, end});
      bytes += end - range.start;
      range.start = end;
    }
  }
  return shares;
}

}  // namespace

// Calls `make` in each thread for what it needs, and copies `ranges` with it. `make` gets the copier's buffer.
void PrivateMemory::copy_side_by_side(std::span<const Range> ranges, std::vector<Range>& missing,
                                      const std::function<Copying(std::vector<std::byte>& buffer)>& make) {
  const std::vector<std::vector<Range>> shares = shares_of(ranges);
  Mutex mutex;
  parallel_for(shares.size(), shares.size() / 2 + 1, [&]() -> ItemWork {
    struct Worker {
      PageCopier copier;
      std::vector<std::byte> buffer;
      Copying copying;
    };
    const auto worker = std::make_shared<Worker>(Worker{PageCopier(process_.pid, has_relatives_), {}, {}});
    worker->copying = make(worker->buffer);
    return [&, worker](size_t number) {
      std::vector<Range> not_there;
      worker->copier.copy(shares[number], worker->copying.allocate, worker->copying.deliver, not_there);
      if (not_there.empty()) return;
      const MutexLock lock(mutex);
      missing.insert(missing.end(), not_there.begin(), not_there.end());
    };
  });
}

void PrivateMemory::precopy_copy() {
  std::vector<Range> missing, done;
  for (size_t i = 0; i < to_copy_.size();) {
    const bool zeros = to_copy_[i].zeros_are_absent;
    std::vector<Range> ranges;
    for (; i < to_copy_.size() && to_copy_[i].zeros_are_absent == zeros; ++i) ranges.push_back(to_copy_[i].range);
    copy_side_by_side(ranges, missing, [&](std::vector<std::byte>& buffer) -> Copying {
      buffer.resize(PageCopier::kChunk);
      return {[&buffer](size_t) { return buffer.data(); },
              [this, zeros](std::span<const Piece> pieces) { put(pieces, zeros); }};
    });
    done.insert(done.end(), ranges.begin(), ranges.end());
  }
  settle_shared();
  normalise(done);
  normalise(missing);
  precopied_.insert(precopied_.end(), done.begin(), done.end());
  normalise(precopied_);
  pending_ = subtract(pending_, subtract(done, missing));
  to_copy_.clear();
}

void PrivateMemory::collect(const std::vector<MemoryMapping>& mappings, StagingArena& arena, bool distrust_precopy) {
  if (distrust_precopy) {
    pending_.insert(pending_.end(), precopied_.begin(), precopied_.end());
    normalise(pending_);
  }
  data_.clear();
  std::vector<Armed> armed;
  std::vector<Range> missing, copy;
  tracker_->begin_pass(true, true);
  bool zeros = true;
  const auto flush = [&] {
    stage(copy, zeros, arena, missing);
    copy.clear();
  };
  for (const MemoryMapping& mapping : mappings) {
    if (!mapping.takes_private_pages()) continue;
    std::vector<PageRange> pages;
    collect_mapping(mapping, armed, pages);
    if (const bool now = zeros_are_absent(*mapping.tracked_as()); now != zeros) {
      flush();
      zeros = now;
    }
    for (const PageRange& page : pages) {
      if (page.zero) continue;  // as if absent
      const Range range{page.start, page.end};
      append_range(data_, range);
      if (page.written) {
        append_range(copy, range);
      } else {
        split_by(range, pending_, [&](Range part, bool inside) {
          if (inside) append_range(copy, part);
        });
      }
    }
  }
  flush();
  normalise(missing);
  data_ = subtract(data_, missing);
  armed_ = std::move(armed);
  pending_.clear();
}

// The processes wait: with as many threads as there are processors, which are idle then.
void PrivateMemory::stage(std::span<const Range> ranges, bool zeros_absent, StagingArena& arena,
                          std::vector<Range>& missing) {
  Mutex mutex;  // of the arena and the list
  copy_side_by_side(ranges, missing, [&, this](std::vector<std::byte>& buffer) -> Copying {
    const auto allocate = [&](size_t bytes) {
      {
        const MutexLock lock(mutex);
        if (std::byte* const room = arena.allocate(bytes); room != nullptr) return room;
      }
      buffer.resize(PageCopier::kChunk);
      writer_->set_compressing(false);
      if (family_) family_->set_compressing(false);
      return buffer.data();
    };
    const auto deliver = [&](std::span<const Piece> pieces) {
      if (pieces.front().bytes.data() == buffer.data()) {  // there was no room: at once
        put(pieces, zeros_absent);
        return;
      }
      const MutexLock lock(mutex);
      staged_.push_back({{pieces.begin(), pieces.end()}, zeros_absent});
    };
    return {allocate, deliver};
  });
}

void PrivateMemory::write() {
  settle_shared();  // what was put in the stop
  writer_->set_compressing(true);
  if (family_) family_->set_compressing(true);
  uint64_t at = 0;
  for (const Range& range : data_) {
    if (at < range.start) writer_->erase(at, range.start);
    at = range.end;
  }
  writer_->erase(at, kAddressEnd);
  parallel_for(staged_.size(), staged_.size(), [this]() -> ItemWork {
    return [this](size_t i) { put(staged_[i].pieces, staged_[i].zeros_are_absent); };
  });
  settle_shared();
  shared_ = intersect(shared_, data_);
  staged_.clear();
  data_.clear();
  writer_->finish();
  written_ = writer_->records();
  writer_.reset();
}

void PrivateMemory::close_unused() {
  if (writer_) writer_->finish();  // a version is only whole with all its files finished
  forget();
}

void PrivateMemory::reload(const VersionReader& version) {
  if (index_->pages() == 0) return;
  writer_.reset();
  index_ = std::make_unique<PageIndex>(PageStoreReader(version, store_).take_index());
}

void PrivateMemory::begin_dedup(const VersionReader* version) {
  hashes_ = std::make_unique<PageHashes>();
  if (version != nullptr && index_->pages() > 0) PageStoreReader(*version, store_).load_hashes(*hashes_);
}

void PrivateMemory::inherit(const VersionReader& version, const std::string& store) {
  PageStoreReader reader(version, store);
  hashes_ = std::make_unique<PageHashes>();
  reader.load_hashes(*hashes_);
  index_ = std::make_unique<PageIndex>(reader.take_index());
  store_ = store;
}

void PrivateMemory::adopt(const std::string& store, PageIndex index, const std::vector<MemoryMapping>& mappings) {
  store_ = store;
  index_ = std::make_unique<PageIndex>(std::move(index));
  armed_.clear();
  tracker_->begin_pass(true, true);
  std::vector<Armed> armed;
  for (const MemoryMapping& mapping : mappings) {
    if (!mapping.takes_private_pages()) continue;
    std::vector<PageRange> pages;
    collect_mapping(mapping, armed, pages);
  }
  // Whatever was written so far is what the index says.
  armed_ = std::move(armed);
}

void PrivateMemory::resume(PageIndex index, const pb::AddressSpace& saved) {
  store_ = saved.index();
  index_ = std::make_unique<PageIndex>(std::move(index));
  armed_.clear();
  uint64_t above = 0;
  for (const pb::Mapping& mapping : saved.mappings()) {
    if (mapping.start() < above || mapping.end() <= mapping.start())
      throw_error(ErrorKind::kImage, "the mappings of {} are not in order", store_);
    above = mapping.end();
    const auto kind = tracked_as(mapping.kind());
    if (kind && *kind != MappingClass::kShared) armed_.push_back({{mapping.start(), mapping.end()}, *kind});
  }
}

}  // namespace icp
