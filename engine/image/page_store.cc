// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/page_store.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <optional>
#include <unordered_map>

#include "engine/base/error.h"
#include "engine/image/image_layout.h"
#include "engine/image/page_file.h"
#include "engine/image/page_hash.h"
#include "engine/image/page_index_file.h"

namespace icp {
namespace {

bool is_zero_page(const std::byte* page) {
  // Nearly every page that is not zero shows it in its first word.
  uint64_t word;
  std::memcpy(&word, page, sizeof word);
  return word == 0 && std::memcmp(page, page + sizeof word, kPageBytes - sizeof word) == 0;
}

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
  std::optional<PageFileWriter> file;  // made with the first record
  bool finished = false, compressing = true;
  std::vector<PageHash> hashes;  // of the pages being put

  // Whether the page has a record in this version already.
  bool is_written(uint64_t address) const { return index.find(address).version == number; }
  // Whether an older version stored the same content for the page.
  bool is_same(uint64_t address, const PageHash& hash) const {
    return known != nullptr && index.find(address).version != 0 && known->find(address) == hash;
  }
  void append(uint64_t address, const std::byte* pages, const PageHash* hash, uint64_t count);
  uint64_t overwrite(uint64_t address, const std::byte* pages, const PageHash* hash, uint64_t limit);
  void put(uint64_t address, const std::byte* pages, uint64_t count);
};

void PageStoreWriter::Impl::append(uint64_t address, const std::byte* pages, const PageHash* hash, uint64_t count) {
  if (!file) {
    file.emplace(version, name);
    file->set_compressing(compressing);
  }
  const uint64_t record = file->append(pages, hash, count);
  for (uint64_t i = 0; i < count; ++i) index.set(address + i * kPageBytes, {number, record + i});
}

// Overwrites as many pages as lie in consecutive records, at most `limit`; returns their number.
uint64_t PageStoreWriter::Impl::overwrite(uint64_t address, const std::byte* pages, const PageHash* hash,
                                          uint64_t limit) {
  const uint64_t record = index.find(address).record;
  if (!file->can_overwrite(record)) {
    append(address, pages, hash, 1);
    return 1;
  }
  uint64_t count = 1;
  while (count < limit && index.find(address + count * kPageBytes) == PageLocation{number, record + count}) ++count;
  file->overwrite(record, pages, hash, count);
  return count;
}

// Pages none of which is to be left out.
void PageStoreWriter::Impl::put(uint64_t address, const std::byte* pages, uint64_t count) {
  hashes.resize(count);
  for (uint64_t i = 0; i < count; ++i) hashes[i] = hash_page(pages + i * kPageBytes);
  for (uint64_t at = 0; at < count;) {
    const uint64_t first = address + at * kPageBytes;
    uint64_t length = 0;
    if (is_written(first)) {
      length = overwrite(first, pages + at * kPageBytes, &hashes[at], count - at);
    } else if (is_same(first, hashes[at])) {
      length = 1;
    } else {
      const auto is_new = [&](uint64_t i) {
        return !is_written(address + i * kPageBytes) && !is_same(address + i * kPageBytes, hashes[i]);
      };
      do ++length;
      while (at + length < count && is_new(at + length));
      append(first, pages + at * kPageBytes, &hashes[at], length);
    }
    at += length;
  }
  if (known == nullptr) return;
  for (uint64_t i = 0; i < count; ++i) known->set(address + i * kPageBytes, hashes[i]);
}

PageStoreWriter::PageStoreWriter(VersionWriter& version, std::string name, PageIndex& index, PageHashes* hashes)
    : impl_(new Impl{version, std::move(name), index, version.version(), hashes, {}, false, true, {}}) {
  check_store_name(impl_->name, ErrorKind::kUsage);
  // Its pages would be taken for records of the file that is about to be made.
  if (PageIndexFile::refers_to_or_after(index, impl_->number)) {
    throw_error(ErrorKind::kUsage, "the index of {} belongs to a version that was not committed", impl_->name);
  }
}

PageStoreWriter::~PageStoreWriter() = default;

void PageStoreWriter::put(uint64_t address, std::span<const std::byte> bytes, bool zeros_are_absent) {
  const uint64_t count = bytes.size() / kPageBytes;
  if (impl_->finished || bytes.size() % kPageBytes != 0 || address % kPageBytes != 0 || address > (1ull << 48) ||
      bytes.size() > (1ull << 48) - address) {
    throw_error(ErrorKind::kUsage, "cannot put {} bytes at {:#x} into {}", bytes.size(), address, impl_->name);
  }
  if (!zeros_are_absent) {
    impl_->put(address, bytes.data(), count);
    return;
  }
  for (uint64_t at = 0; at < count;) {
    const bool zero = is_zero_page(bytes.data() + at * kPageBytes);
    uint64_t end = at + 1;
    while (end < count && is_zero_page(bytes.data() + end * kPageBytes) == zero) ++end;
    if (zero) {
      impl_->index.erase(address + at * kPageBytes, address + end * kPageBytes);
    } else {
      impl_->put(address + at * kPageBytes, bytes.data() + at * kPageBytes, end - at);
    }
    at = end;
  }
}

void PageStoreWriter::set_compressing(bool on) {
  impl_->compressing = on;
  if (impl_->file) impl_->file->set_compressing(on);
}

void PageStoreWriter::erase(uint64_t start, uint64_t end) { impl_->index.erase(start, end); }

void PageStoreWriter::finish() {
  if (impl_->finished) throw_error(ErrorKind::kUsage, "{} was finished before", impl_->name);
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
  if (pages > to.size() / kPageBytes || to.size() != pages * kPageBytes) {
    throw_error(ErrorKind::kUsage, "{} pages do not fit into {} bytes", pages, to.size());
  }
  if (location.version == 0) throw_error(ErrorKind::kUsage, "a page without location cannot be read");
  impl_->file(location.version).read(location.record, pages, to.data());
}

void PageStoreReader::load_hashes(PageHashes& hashes) {
  impl_->index.for_each_run_in_file_order(0, 1ull << 48, [&](uint64_t address, uint64_t pages, PageLocation location) {
    PageFileReader& file = impl_->file(location.version);
    file.check_records(location.record, pages);
    for (uint64_t i = 0; i < pages; ++i) hashes.set(address + i * kPageBytes, file.hash(location.record + i));
  });
}

}  // namespace icp
