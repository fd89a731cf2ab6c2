// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/page_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "engine/base/error.h"
#include "engine/image/image_files.h"
#include "engine/image/image_layout.h"
#include "engine/image/sealed_file.h"

namespace icp {
namespace {

// The rest of the header's page is zeros.
struct PageFileHeader {
  char magic[8];
  uint32_t format;
  uint32_t version;
  uint64_t store_hash;  // XXH3-64 of the store's name
  uint64_t xxh3;        // of the bytes before
};
static_assert(sizeof(PageFileHeader) == 32);

struct PageFileTrailer {
  char magic[8];
  uint32_t format;
  uint32_t version;
  uint64_t store_hash;
  uint64_t records;
  uint64_t table_xxh3;  // XXH3-64 of the checksum table
  uint64_t xxh3;        // of the bytes before
};
static_assert(sizeof(PageFileTrailer) == 48);

constexpr char kHeaderMagic[8] = {'I', 'C', 'P', 'P', 'A', 'G', 'E', 'S'};
constexpr char kTrailerMagic[8] = {'I', 'C', 'P', 'P', 'G', 'E', 'N', 'D'};
// Pieces from this size on are written from where they are instead of being copied together.
constexpr uint64_t kDirectPages = (256 << 10) / kPageBytes;
constexpr size_t kTailBytes = 1 << 20;

uint32_t checksum(const std::byte* page) { return static_cast<uint32_t>(XXH3_64bits(page, kPageBytes)); }
uint64_t offset_of(uint64_t record) { return (record + 1) * kPageBytes; }

}  // namespace

PageFileWriter::PageFileWriter(VersionWriter& version, const std::string& store)
    : name_(page_file_name(store, version.version())),
      path_(version.file_path(name_)),
      store_hash_(hash_of(store)),
      version_(version.version()),
      fd_(version.create_file(name_)) {
  PageFileHeader header{};
  std::memcpy(header.magic, kHeaderMagic, sizeof kHeaderMagic);
  header.format = kImageFormat;
  header.version = version_;
  header.store_hash = store_hash_;
  header.xxh3 = XXH3_64bits(&header, offsetof(PageFileHeader, xxh3));
  std::vector<std::byte> page(kPageBytes);
  std::memcpy(page.data(), &header, sizeof header);
  write_at(fd_.get(), page.data(), page.size(), 0, path_);
}

uint64_t PageFileWriter::append(const std::byte* pages, uint64_t count) {
  const uint64_t first = records();
  if (count > kMaxRecord - first) throw_error(ErrorKind::kRefused, "{} would have too many pages", path_);
  for (uint64_t i = 0; i < count; ++i) checksums_.push_back(checksum(pages + i * kPageBytes));
  if (count >= kDirectPages) {
    flush_tail();
    write_out(first, pages, count);
    tail_first_ = records();
    return first;
  }
  if (tail_.capacity() == 0) tail_.reserve(kTailBytes + kDirectPages * kPageBytes);
  tail_.insert(tail_.end(), pages, pages + count * kPageBytes);
  if (tail_.size() >= kTailBytes) flush_tail();
  return first;
}

void PageFileWriter::overwrite(uint64_t record, const std::byte* pages, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) checksums_[record + i] = checksum(pages + i * kPageBytes);
  const uint64_t written = record < tail_first_ ? std::min(count, tail_first_ - record) : 0;
  if (written > 0) write_out(record, pages, written);
  if (written < count) {
    std::memcpy(tail_.data() + (record + written - tail_first_) * kPageBytes, pages + written * kPageBytes,
                (count - written) * kPageBytes);
  }
}

void PageFileWriter::write_out(uint64_t record, const std::byte* pages, uint64_t count) {
  write_at(fd_.get(), pages, count * kPageBytes, offset_of(record), path_);
}

void PageFileWriter::flush_tail() {
  if (!tail_.empty()) write_out(tail_first_, tail_.data(), tail_.size() / kPageBytes);
  tail_first_ += tail_.size() / kPageBytes;
  tail_.clear();
}

void PageFileWriter::finish(VersionWriter& version) {
  flush_tail();
  uint64_t offset = offset_of(records());
  const size_t table_bytes = checksums_.size() * sizeof checksums_[0];
  write_at(fd_.get(), checksums_.data(), table_bytes, offset, path_);
  offset += table_bytes;

  PageFileTrailer trailer{};
  std::memcpy(trailer.magic, kTrailerMagic, sizeof kTrailerMagic);
  trailer.format = kImageFormat;
  trailer.version = version_;
  trailer.store_hash = store_hash_;
  trailer.records = records();
  trailer.table_xxh3 = XXH3_64bits(checksums_.data(), table_bytes);
  trailer.xxh3 = XXH3_64bits(&trailer, offsetof(PageFileTrailer, xxh3));
  write_at(fd_.get(), &trailer, sizeof trailer, offset, path_);
  version.add_file(name_, offset + sizeof trailer, 0);
  fd_.reset();
}

PageFileReader::PageFileReader(const VersionReader& version, const std::string& store, uint32_t file_version)
    : name_(page_file_name(store, file_version)),
      path_(version.file_path(file_version, name_)),
      version_(file_version),
      fd_(version.open_file(file_version, name_)) {
  struct stat info {};
  if (::fstat(fd_.get(), &info) != 0) throw_errno("cannot look at {}", path_);
  size_ = static_cast<uint64_t>(info.st_size);
  inode_ = info.st_ino;
  device_ = info.st_dev;
  check_header(store);
  load_checksums(store);
}

void PageFileReader::check_header(const std::string& store) const {
  PageFileHeader header{};
  if (size_ < kPageBytes + sizeof(PageFileTrailer)) {
    throw_error(ErrorKind::kImage, "{} is cut: {} bytes", path_, size_);
  }
  read_at(fd_.get(), &header, sizeof header, 0, path_);
  if (std::memcmp(header.magic, kHeaderMagic, sizeof kHeaderMagic) != 0 ||
      header.xxh3 != XXH3_64bits(&header, offsetof(PageFileHeader, xxh3))) {
    throw_error(ErrorKind::kImage, "{} is damaged at offset 0: header is damaged", path_);
  }
  if (header.format != kImageFormat) {
    throw_error(ErrorKind::kImage, "{} has image format {}, this program reads format {}", path_, header.format,
                kImageFormat);
  }
  if (header.version != version_ || header.store_hash != hash_of(store)) {
    throw_error(ErrorKind::kImage, "{} belongs to another store or version", path_);
  }
}

void PageFileReader::load_checksums(const std::string& store) {
  PageFileTrailer trailer{};
  const uint64_t trailer_at = size_ - sizeof trailer;
  read_at(fd_.get(), &trailer, sizeof trailer, trailer_at, path_);
  if (std::memcmp(trailer.magic, kTrailerMagic, sizeof kTrailerMagic) != 0 ||
      trailer.xxh3 != XXH3_64bits(&trailer, offsetof(PageFileTrailer, xxh3)) || trailer.format != kImageFormat ||
      trailer.version != version_ || trailer.store_hash != hash_of(store)) {
    throw_error(ErrorKind::kImage, "{} is damaged at offset {}: trailer is damaged", path_, trailer_at);
  }
  // The size bounds the number, so nothing large is allocated for a small file.
  constexpr uint64_t kEach = kPageBytes + sizeof(uint32_t);
  if (trailer.records > kMaxRecord + 1 || trailer.records * kEach != trailer_at - kPageBytes) {
    throw_error(ErrorKind::kImage, "{} is damaged at offset {}: {} records do not make a file of {} bytes", path_,
                trailer_at, trailer.records, size_);
  }
  checksums_.resize(trailer.records);
  const size_t table_bytes = checksums_.size() * sizeof checksums_[0];
  read_at(fd_.get(), checksums_.data(), table_bytes, offset_of(trailer.records), path_);
  if (XXH3_64bits(checksums_.data(), table_bytes) != trailer.table_xxh3) {
    throw_error(ErrorKind::kImage, "{} is damaged at offset {}: checksum table is damaged", path_,
                offset_of(trailer.records));
  }
}

void PageFileReader::reopen(const VersionReader& version) {
  UniqueFd fd = version.open_file(version_, name_);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) throw_errno("cannot look at {}", path_);
  if (info.st_ino != inode_ || info.st_dev != device_ || static_cast<uint64_t>(info.st_size) != size_) {
    throw_error(ErrorKind::kImage, "{} was replaced while it was read", path_);
  }
  fd_ = std::move(fd);
}

void PageFileReader::read(uint64_t record, uint64_t count, std::byte* to) {
  if (record >= records() || count > records() - record) {
    throw_error(ErrorKind::kImage, "{} has {} page records, the index refers to record {}", path_, records(),
                record + count - 1);
  }
  read_at(fd_.get(), to, count * kPageBytes, offset_of(record), path_);
  for (uint64_t i = 0; i < count; ++i) {
    if (checksum(to + i * kPageBytes) != checksums_[record + i]) {
      throw_error(ErrorKind::kImage, "{} is damaged at offset {}: the page there has another checksum", path_,
                  offset_of(record + i));
    }
  }
}

}  // namespace icp
