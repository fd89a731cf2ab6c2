// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/page_store.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <optional>
#include <unordered_map>

#include "engine/base/check.h"
#include "engine/base/mutex.h"
#include "engine/image/image_layout.h"
#include "engine/image/page_file.h"
#include "engine/image/page_hash.h"
#include "engine/image/page_index_file.h"

namespace icp {
namespace {

// How many page files one reader keeps open: a part of what the process may have, since there is a reader a store.
size_t open_file_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return 1024;
  return std::clamp<size_t>(limit.rlim_cur / 4, 8, 1024);
}

void check_store_name(const std::string& name, ErrorKind kind) {
  // Room for ".16777215.bin" within what a file name of an image may be.
  if (!is_safe_name(name) || name.size() > 180) {
    throw_error(kind, "\"{}\" cannot be the name of a page store", is_safe_name(name) ? name : "(not printable)");
  }
}

}  // namespace

struct PageStoreWriter::Impl {
  VersionWriter& version;
  std::string name;
  PageIndex& index;
  uint32_t number;
  PageHashes* known;
  Mutex mutex;                         // held while pages are given their places, not while they are hashed or written
  std::optional<PageFileWriter> file;  // made with the first record
  bool finished = false, compressing = true;

  // Whether the page has a record in this version already.
  bool is_written(uint64_t address) const { return index.find(address).version == number; }
  // Whether an older version stored the same content for the page.
  bool is_same(uint64_t address, const PageHash& hash) const {
    return known != nullptr && index.find(address).version != 0 && known->find(address) == hash;
  }
  void check(const Piece& piece) const;
};

// Gives pages their places, one call of put() long.
class PageStoreWriter::Placement {
 public:
  explicit Placement(Impl& store) : store_(store) {}

  // None is to be left out.
  void place(uint64_t address, const std::byte* pages, const PageHash* hashes, uint64_t count);
  // After the last place().
  void append_run();
  const PageFileWriter::Pending& pending() const { return pending_; }

 private:
  void append(uint64_t address, const std::byte* pages, const PageHash* hash, uint64_t count);
  uint64_t overwrite(uint64_t address, const std::byte* pages, const PageHash* hash, uint64_t limit);

  Impl& store_;
  PageFileWriter::Pending pending_;
  // New records that follow one another in memory and in the file: [file->records(), ... + run_count_).
  const std::byte* run_pages_ = nullptr;
  const PageHash* run_hashes_ = nullptr;
  uint64_t run_count_ = 0;
};

void PageStoreWriter::Placement::append_run() {
  if (run_count_ > 0) store_.file->append(run_pages_, run_hashes_, run_count_, pending_);
  run_count_ = 0;
}

void PageStoreWriter::Placement::append(uint64_t address, const std::byte* pages, const PageHash* hash,
                                        uint64_t count) {
  if (!store_.file) {
    store_.file.emplace(store_.version, store_.name);
    store_.file->set_compressing(store_.compressing);
  }
  if (run_count_ == 0 || run_pages_ + run_count_ * kPageBytes != pages || run_hashes_ + run_count_ != hash) {
    append_run();
    run_pages_ = pages;
    run_hashes_ = hash;
  }
  const uint64_t record = store_.file->records() + run_count_;
  for (uint64_t i = 0; i < count; ++i) store_.index.set(address + i * kPageBytes, {store_.number, record + i});
  run_count_ += count;
}

// Overwrites as many pages as lie in consecutive records, at most `limit`; returns their number.
uint64_t PageStoreWriter::Placement::overwrite(uint64_t address, const std::byte* pages, const PageHash* hash,
                                               uint64_t limit) {
  append_run();
  const uint64_t record = store_.index.find(address).record;
  if (!store_.file->can_overwrite(record)) {
    append(address, pages, hash, 1);
    return 1;
  }
  uint64_t count = 1;
  const auto follows = [&] {
    return store_.index.find(address + count * kPageBytes) == PageLocation{store_.number, record + count};
  };
  while (count < limit && follows()) ++count;
  store_.file->overwrite(record, pages, hash, count, pending_);
  return count;
}

void PageStoreWriter::Placement::place(uint64_t address, const std::byte* pages, const PageHash* hashes,
                                       uint64_t count) {
  for (uint64_t at = 0; at < count;) {
    const uint64_t first = address + at * kPageBytes;
    uint64_t length = 0;
    if (store_.is_written(first)) {
      length = overwrite(first, pages + at * kPageBytes, hashes + at, count - at);
    } else if (store_.is_same(first, hashes[at])) {
      length = 1;
    } else {
      const auto is_new = [&](uint64_t i) {
        return !store_.is_written(address + i * kPageBytes) && !store_.is_same(address + i * kPageBytes, hashes[i]);
      };
      do ++length;
      while (at + length < count && is_new(at + length));
      append(first, pages + at * kPageBytes, hashes + at, length);
    }
    at += length;
  }
  if (store_.known == nullptr) return;
  for (uint64_t i = 0; i < count; ++i) store_.known->set(address + i * kPageBytes, hashes[i]);
}

PageStoreWriter::PageStoreWriter(VersionWriter& version, std::string name, PageIndex& index, PageHashes* hashes)
    : impl_(new Impl{version, std::move(name), index, version.version(), hashes, {}, {}, false, true}) {
  check_store_name(impl_->name, ErrorKind::kUsage);
  // Its pages would be taken for records of the file that is about to be made.
  ICP_CHECK(!PageIndexFile::refers_to_or_after(index, impl_->number),
            "the index of {} belongs to a version that was not committed", impl_->name);
}

PageStoreWriter::~PageStoreWriter() = default;

void PageStoreWriter::Impl::check(const Piece& piece) const {
  const size_t bytes = piece.bytes.size();
  ICP_CHECK(!finished && bytes % kPageBytes == 0 && piece.address % kPageBytes == 0 && piece.address <= (1ull << 48) &&
                bytes <= (1ull << 48) - piece.address,
            "cannot put {} bytes at {:#x} into {}", bytes, piece.address, name);
}

void PageStoreWriter::put(std::span<const Piece> pieces, bool zeros_are_absent) {
  // Runs of pages that are alike: all zeros (without hashes), or not.
  struct Run {
    uint64_t address;
    const std::byte* pages;
    uint64_t count;
    bool zero;
  };
  std::vector<Run> runs;
  std::vector<PageHash> hashes;
  for (const Piece& piece : pieces) {
    impl_->check(piece);
    const uint64_t count = piece.bytes.size() / kPageBytes;
    for (uint64_t at = 0; at < count; ++at) {
      const std::byte* page = piece.bytes.data() + at * kPageBytes;
      const bool zero = zeros_are_absent && is_zero_page(page);
      if (!zero) hashes.push_back(hash_page(page));
      if (at > 0 && runs.back().zero == zero) {
        ++runs.back().count;
      } else {
        runs.push_back({piece.address + at * kPageBytes, page, 1, zero});
      }
    }
  }
  Placement placement(*impl_);
  PageFileWriter* file = nullptr;
  {
    const MutexLock lock(impl_->mutex);
    try {
      const PageHash* hash = hashes.data();
      for (const Run& run : runs) {
        if (run.zero) {
          impl_->index.erase(run.address, run.address + run.count * kPageBytes);
        } else {
          placement.place(run.address, run.pages, hash, run.count);
          hash += run.count;
        }
      }
      placement.append_run();
    } catch (...) {
      if (impl_->file) impl_->file->give_up();
      throw;
    }
    if (impl_->file) file = &*impl_->file;
  }
  if (file != nullptr) file->write(placement.pending());
}

void PageStoreWriter::put(uint64_t address, std::span<const std::byte> bytes, bool zeros_are_absent) {
  const Piece piece{address, bytes};
  put(std::span(&piece, 1), zeros_are_absent);
}

void PageStoreWriter::set_compressing(bool on) {
  const MutexLock lock(impl_->mutex);
  impl_->compressing = on;
  if (impl_->file) impl_->file->set_compressing(on);
}

void PageStoreWriter::erase(uint64_t start, uint64_t end) { impl_->index.erase(start, end); }

void PageStoreWriter::finish() {
  ICP_CHECK(!impl_->finished, "{} was finished before", impl_->name);
  impl_->finished = true;
  if (impl_->file) impl_->file->finish(impl_->version);
  PageIndexFile::write(impl_->index, impl_->version, impl_->name);
}

uint64_t PageStoreWriter::records() const { return impl_->file ? impl_->file->records() : 0; }

struct PageStoreReader::Impl {
  struct OpenFile {
    PageFileReader reader;
    std::list<uint32_t>::iterator place;  // in `recent`, while open
  };

  VersionReader version;
  std::string name;
  PageIndex index;
  std::unordered_map<uint32_t, OpenFile> files;
  std::list<uint32_t> recent;  // versions whose file is open, last used first
  size_t limit = open_file_limit();

  PageFileReader& file(uint32_t number);
};

PageFileReader& PageStoreReader::Impl::file(uint32_t number) {
  auto found = files.find(number);
  if (found != files.end() && found->second.reader.is_open()) {
    recent.splice(recent.begin(), recent, found->second.place);
    return found->second.reader;
  }
  if (recent.size() >= limit) {
    files.at(recent.back()).reader.close();
    recent.pop_back();
  }
  if (found != files.end()) {
    found->second.reader.reopen(version);
  } else {
    found = files.emplace(number, OpenFile{PageFileReader(version, name, number), recent.end()}).first;
  }
  recent.push_front(number);
  found->second.place = recent.begin();
  return found->second.reader;
}

PageStoreReader::PageStoreReader(const VersionReader& version, std::string name)
    : impl_(new Impl{version, std::move(name), {}, {}, {}}) {
  check_store_name(impl_->name, ErrorKind::kImage);
  impl_->index = PageIndexFile::load(version, impl_->name);
}

PageStoreReader::~PageStoreReader() = default;
PageStoreReader::PageStoreReader(PageStoreReader&&) noexcept = default;

PageStoreReader::PageStoreReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

PageStoreReader PageStoreReader::sibling() const {
  std::unique_ptr<Impl> impl(new Impl{impl_->version, impl_->name, {}, {}, {}});
  impl->limit = std::max<size_t>(impl_->limit / 8, 8);  // of all siblings together: what one may have
  return PageStoreReader(std::move(impl));
}

const PageIndex& PageStoreReader::index() const { return impl_->index; }
PageIndex PageStoreReader::take_index() { return std::exchange(impl_->index, PageIndex()); }

void PageStoreReader::read(PageLocation location, uint64_t pages, std::span<std::byte> to) {
  read_unverified(location, pages, to);
  verify(location, to);
}

void PageStoreReader::verify(PageLocation location, std::span<const std::byte> pages) {
  if (!pages.empty())
    impl_->file(location.version).check_pages(location.record, pages.size() / kPageBytes, pages.data());
}

void PageStoreReader::read_unverified(PageLocation location, uint64_t pages, std::span<std::byte> to) {
  if (pages == 0) return;
  ICP_CHECK(pages <= to.size() / kPageBytes && to.size() == pages * kPageBytes, "{} pages do not fit into {} bytes",
            pages, to.size());
  ICP_CHECK(location.version != 0, "a page without location cannot be read");
  impl_->file(location.version).read(location.record, pages, to.data());
}

void PageStoreReader::read_unverified(PageLocation location, std::span<const iovec> to) {
  ICP_CHECK(location.version != 0, "a page without location cannot be read");
  impl_->file(location.version).read_scattered(location.record, to);
}

void PageStoreReader::load_hashes(PageHashes& hashes) {
  impl_->index.for_each_run_in_file_order(0, 1ull << 48, [&](uint64_t address, uint64_t pages, PageLocation location) {
    PageFileReader& file = impl_->file(location.version);
    file.check_records(location.record, pages);
    for (uint64_t i = 0; i < pages; ++i) hashes.set(address + i * kPageBytes, file.hash(location.record + i));
  });
}

}  // namespace icp
