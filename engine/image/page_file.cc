// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/page_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
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
  uint32_t compression;    // Compression
  uint32_t block_records;  // kBlockRecords, 0 when not compressed
  uint64_t table_xxh3;     // XXH3-64 of the lengths of blocks and the checksums of hashes
  uint64_t xxh3;           // of the bytes before
};
static_assert(sizeof(PageFileTrailer) == 56);

constexpr char kHeaderMagic[8] = {'I', 'C', 'P', 'P', 'A', 'G', 'E', 'S'};
constexpr char kTrailerMagic[8] = {'I', 'C', 'P', 'P', 'G', 'E', 'N', 'D'};
// Pieces from this size on are written from where they are instead of being copied together.
constexpr uint64_t kDirectPages = (256 << 10) / kPageBytes;
constexpr size_t kTailBytes = 1 << 20;
constexpr uint64_t kPieceRecords = 4096;  // hashes under one checksum

uint64_t offset_of(uint64_t record) { return (record + 1) * kPageBytes; }
uint64_t pieces_of(uint64_t records) { return (records + kPieceRecords - 1) / kPieceRecords; }
uint64_t blocks_of(uint64_t records) { return (records + kBlockRecords - 1) / kBlockRecords; }

std::vector<uint64_t> checksums_of(std::span<const PageHash> hashes) {
  std::vector<uint64_t> checksums;
  for (size_t at = 0; at < hashes.size(); at += kPieceRecords) {
    const auto piece = hashes.subspan(at, std::min<size_t>(kPieceRecords, hashes.size() - at));
    checksums.push_back(XXH3_64bits(piece.data(), piece.size_bytes()));
  }
  return checksums;
}

}  // namespace

PageFileWriter::PageFileWriter(VersionWriter& version, const std::string& store)
    : store_(store),
      name_(page_file_name(store, version.version())),
      path_(version.file_path(name_)),
      version_(version.version()),
      compression_(version.compression()),
      fd_(version.create_file(name_)),
      next_block_at_(kPageBytes) {
  write_header();
}

void PageFileWriter::write_header() {
  PageFileHeader header{};
  std::memcpy(header.magic, kHeaderMagic, sizeof kHeaderMagic);
  header.format = kImageFormat;
  header.version = version_;
  header.store_hash = hash_of(store_);
  header.xxh3 = XXH3_64bits(&header, offsetof(PageFileHeader, xxh3));
  std::vector<std::byte> page(kPageBytes);
  std::memcpy(page.data(), &header, sizeof header);
  write_at(fd_.get(), page.data(), page.size(), 0, path_);
}

uint64_t PageFileWriter::append(const std::byte* pages, const PageHash* hashes, uint64_t count, Pending& pending) {
  const uint64_t first = records();
  if (count > kMaxRecord - first) throw_error(ErrorKind::kRefused, "{} would have too many pages", path_);
  hashes_.insert(hashes_.end(), hashes, hashes + count);
  if (count >= kDirectPages && compression_ == Compression::kNone) {
    take_tail(false, pending);
    pending.pieces_.push_back({first, pages, count});
    tail_first_ = records();
    return first;
  }
  if (tail_.capacity() < kTailBytes) tail_.reserve(kTailBytes + kDirectPages * kPageBytes);
  tail_.insert(tail_.end(), pages, pages + count * kPageBytes);
  if (tail_.size() >= kTailBytes) take_tail(true, pending);
  return first;
}

void PageFileWriter::overwrite(uint64_t record, const std::byte* pages, const PageHash* hashes, uint64_t count,
                               Pending& pending) {
  std::copy_n(hashes, count, hashes_.begin() + static_cast<ptrdiff_t>(record));
  const uint64_t written = record < tail_first_ ? std::min(count, tail_first_ - record) : 0;
  if (written > 0) {
    wait_for_others(record, written, pending);
    pending.pieces_.push_back({record, pages, written});
  }
  if (written < count) {
    std::memcpy(tail_.data() + (record + written - tail_first_) * kPageBytes, pages + written * kPageBytes,
                (count - written) * kPageBytes);
  }
}

void PageFileWriter::take_tail(bool whole_blocks, Pending& pending) {
  uint64_t count = tail_.size() / kPageBytes;
  const bool packed = compression_ != Compression::kNone;
  if (packed && whole_blocks) count -= count % kBlockRecords;
  if (count == 0) return;
  Pending::Batch batch{packed ? batches_++ : 0, tail_first_, compressing_, {}};
  const auto end = tail_.begin() + static_cast<ptrdiff_t>(count * kPageBytes);
  std::vector<std::byte> rest(end, tail_.end());
  if (rest.empty()) {
    batch.bytes = std::move(tail_);
  } else {
    batch.bytes.assign(tail_.begin(), end);
  }
  tail_ = std::move(rest);
  tail_first_ += count;
  if (!packed) {
    const MutexLock lock(writing_mutex_);
    to_write_[batch.record] = count;
  }
  pending.batches_.push_back(std::move(batch));
}

// What is pending here is written in order, so that the later content stays. What another thread has taken from the
// tail may be written at any moment.
void PageFileWriter::wait_for_others(uint64_t record, uint64_t count, const Pending& own) {
  const auto is_own = [&](uint64_t first) {
    return std::any_of(own.batches_.begin(), own.batches_.end(),
                       [first](const Pending::Batch& batch) { return batch.record == first; });
  };
  const auto is_free = [&]() ICP_REQUIRES(writing_mutex_) {
    auto batch = to_write_.upper_bound(record);
    if (batch != to_write_.begin()) --batch;
    for (; batch != to_write_.end() && batch->first < record + count; ++batch) {
      if (batch->first + batch->second > record && !is_own(batch->first)) return false;
    }
    return true;
  };
  const MutexLock lock(writing_mutex_);
  while (!failure_ && !is_free()) written_.wait(writing_mutex_);
  if (failure_) std::rethrow_exception(failure_);
}

void PageFileWriter::write_out(uint64_t record, const std::byte* pages, uint64_t count) const {
  write_at(fd_.get(), pages, count * kPageBytes, offset_of(record), path_);
}

// A block that does not get smaller is stored as it is: its length tells.
void PageFileWriter::write_compressed(const Pending::Batch& batch) {
  std::vector<std::byte> packed, block;
  std::vector<uint32_t> lengths;
  packed.reserve(batch.bytes.size());
  for (size_t at = 0; at < batch.bytes.size(); at += kBlockRecords * kPageBytes) {
    const size_t rest = batch.bytes.size() - at;
    std::span<const std::byte> bytes(batch.bytes.data() + at, std::min(kBlockRecords * kPageBytes, rest));
    if (batch.compressing && compress_block(compression_, bytes, block)) bytes = block;
    packed.insert(packed.end(), bytes.begin(), bytes.end());
    lengths.push_back(static_cast<uint32_t>(bytes.size()));
  }
  uint64_t at = 0;
  {
    const MutexLock lock(writing_mutex_);
    while (turn_ != batch.number && !failure_) written_.wait(writing_mutex_);
    if (failure_) std::rethrow_exception(failure_);
    at = next_block_at_;
    next_block_at_ += packed.size();
    blocks_.insert(blocks_.end(), lengths.begin(), lengths.end());
    ++turn_;
  }
  written_.notify_all();
  write_at(fd_.get(), packed.data(), packed.size(), at, path_);
}

void PageFileWriter::write(const Pending& pending) {
  try {
    for (const Pending::Batch& batch : pending.batches_) {
      if (compression_ != Compression::kNone) {
        write_compressed(batch);
        continue;
      }
      write_out(batch.record, batch.bytes.data(), batch.bytes.size() / kPageBytes);
      {
        const MutexLock lock(writing_mutex_);
        to_write_.erase(batch.record);
      }
      written_.notify_all();
    }
    for (const Pending::Piece& piece : pending.pieces_) write_out(piece.record, piece.pages, piece.count);
  } catch (...) {
    give_up();
    throw;
  }
}

void PageFileWriter::give_up() {
  const MutexLock lock(writing_mutex_);
  if (!failure_) failure_ = std::current_exception();
  written_.notify_all();
}

void PageFileWriter::flush_tail(bool whole_blocks) {
  Pending pending;
  take_tail(whole_blocks, pending);
  write(pending);
}

void PageFileWriter::flush_records() {
  flush_tail(true);
  if (::fdatasync(fd_.get()) != 0) throw_errno("cannot flush {} to disk", path_);
}

void PageFileWriter::finish(VersionWriter& version) {
  flush_tail(false);
  const MutexLock lock(writing_mutex_);
  if (failure_) std::rethrow_exception(failure_);
  if (version_ != version.version()) {
    version_ = version.version();
    const std::string name = page_file_name(store_, version_);
    version.rename_file(name_, name);
    name_ = name;
    path_ = version.file_path(name_);
    write_header();
  }
  const bool packed = compression_ != Compression::kNone;
  uint64_t offset = packed ? next_block_at_ : offset_of(records());
  const std::span<const std::byte> hashes = std::as_bytes(std::span(hashes_));
  write_at(fd_.get(), hashes.data(), hashes.size(), offset, path_);
  offset += hashes.size();
  std::vector<std::byte> table;  // the blocks' lengths and the checksums of hashes
  const auto add = [&table](const auto& numbers) {
    const std::span<const std::byte> bytes = std::as_bytes(std::span(numbers));
    table.insert(table.end(), bytes.begin(), bytes.end());
  };
  add(blocks_);
  add(checksums_of(hashes_));
  write_at(fd_.get(), table.data(), table.size(), offset, path_);
  offset += table.size();

  PageFileTrailer trailer{};
  std::memcpy(trailer.magic, kTrailerMagic, sizeof kTrailerMagic);
  trailer.format = kImageFormat;
  trailer.version = version_;
  trailer.store_hash = hash_of(store_);
  trailer.records = records();
  trailer.compression = static_cast<uint32_t>(compression_);
  trailer.block_records = packed ? kBlockRecords : 0;
  trailer.table_xxh3 = XXH3_64bits(table.data(), table.size());
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
  load_tables(store);
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

void PageFileReader::load_tables(const std::string& store) {
  PageFileTrailer trailer{};
  const uint64_t trailer_at = size_ - sizeof trailer;
  read_at(fd_.get(), &trailer, sizeof trailer, trailer_at, path_);
  if (std::memcmp(trailer.magic, kTrailerMagic, sizeof kTrailerMagic) != 0 ||
      trailer.xxh3 != XXH3_64bits(&trailer, offsetof(PageFileTrailer, xxh3)) || trailer.format != kImageFormat ||
      trailer.version != version_ || trailer.store_hash != hash_of(store)) {
    throw_error(ErrorKind::kImage, "{} is damaged at offset {}: trailer is damaged", path_, trailer_at);
  }
  const bool packed = trailer.compression != 0;
  if (trailer.compression > static_cast<uint32_t>(Compression::kLz4) ||
      trailer.block_records != (packed ? kBlockRecords : 0)) {
    throw_error(ErrorKind::kImage, "{} is compressed in a way that this program does not know", path_);
  }
  compression_ = static_cast<Compression>(trailer.compression);
  // The size bounds the number, so nothing large is allocated for a small file: a compressed block has at least a byte.
  const uint64_t space = trailer_at - kPageBytes;
  const bool possible = trailer.records <= std::min(kMaxRecord + 1, space / sizeof(PageHash));
  const uint64_t records = possible ? trailer.records : 0;
  const uint64_t hash_bytes = records * sizeof(PageHash), length_bytes = packed ? blocks_of(records) * 4 : 0,
                 table_bytes = length_bytes + pieces_of(records) * sizeof(uint64_t);
  const uint64_t least = hash_bytes + table_bytes + (packed ? 0 : records * kPageBytes);
  if (!possible || (packed ? least > space : least != space)) {
    throw_error(ErrorKind::kImage, "{} is damaged at offset {}: {} records do not make a file of {} bytes", path_,
                trailer_at, trailer.records, size_);
  }
  const uint64_t table_at = trailer_at - table_bytes;
  std::vector<std::byte> table(table_bytes);
  read_at(fd_.get(), table.data(), table.size(), table_at, path_);
  if (XXH3_64bits(table.data(), table.size()) != trailer.table_xxh3) {
    throw_error(ErrorKind::kImage, "{} is damaged at offset {}: checksum table is damaged", path_, table_at);
  }
  records_ = records;
  hashes_at_ = table_at - hash_bytes;
  checksums_.resize(pieces_of(records));
  pieces_.resize(checksums_.size());
  std::copy(table.begin() + static_cast<ptrdiff_t>(length_bytes), table.end(),
            std::as_writable_bytes(std::span(checksums_)).begin());
  if (packed) load_blocks(std::span(table).first(length_bytes), hashes_at_);
}

std::vector<PageHash>& PageFileReader::load_piece(uint64_t number) {
  std::vector<PageHash>& piece = pieces_[number];
  if (!piece.empty()) return piece;
  const uint64_t first = number * kPieceRecords, at = hashes_at_ + first * sizeof(PageHash);
  std::vector<PageHash> hashes(std::min(kPieceRecords, records_ - first));
  const size_t bytes = hashes.size() * sizeof hashes[0];
  read_at(fd_.get(), hashes.data(), bytes, at, path_);
  if (XXH3_64bits(hashes.data(), bytes) != checksums_[number]) {
    throw_error(ErrorKind::kImage, "{} is damaged at offset {}: checksum table is damaged", path_, at);
  }
  return piece = std::move(hashes);
}

const PageHash& PageFileReader::hash(uint64_t record) {
  return load_piece(record / kPieceRecords)[record % kPieceRecords];
}

// Every block holds kBlockRecords pages but the last; it has at least one byte and no more than its pages, and all
// together fill the file up to the table.
void PageFileReader::load_blocks(std::span<const std::byte> lengths, uint64_t end) {
  uint64_t at = kPageBytes;
  for (uint64_t number = 0; number * sizeof(uint32_t) < lengths.size(); ++number) {
    uint32_t length = 0;
    std::memcpy(&length, lengths.data() + number * sizeof length, sizeof length);
    const uint64_t pages = std::min(kBlockRecords, records() - number * kBlockRecords);
    if (length == 0 || length > pages * kPageBytes || length > end - at) {
      throw_error(ErrorKind::kImage, "{} is damaged at offset {}: impossible length of a block", path_, at);
    }
    at += length;
    block_ends_.push_back(at);
  }
  if (at != end) throw_error(ErrorKind::kImage, "{} is damaged at offset {}: blocks do not fill the file", path_, at);
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

void PageFileReader::check_records(uint64_t record, uint64_t count) const {
  if (record >= records() || count > records() - record) {
    throw_error(ErrorKind::kImage, "{} has {} page records, the index refers to record {}", path_, records(),
                record + count - 1);
  }
}

void PageFileReader::check_pages(uint64_t record, uint64_t count, const std::byte* pages) {
  check_records(record, count);
  for (uint64_t i = 0; i < count; ++i) {
    if (hash_page(pages + i * kPageBytes) == hash(record + i)) continue;
    const uint64_t block = (record + i) / kBlockRecords;
    throw_error(ErrorKind::kImage, "{} is damaged at offset {}: the page there has another checksum", path_,
                compression_ == Compression::kNone ? offset_of(record + i)
                                                   : (block == 0 ? kPageBytes : block_ends_[block - 1]));
  }
}

std::span<const std::byte> PageFileReader::block(uint64_t number) {
  const uint64_t pages = std::min(kBlockRecords, records() - number * kBlockRecords);
  if (number == held_block_) return std::span(held_).first(pages * kPageBytes);
  held_block_ = ~0ull;
  held_.resize(kBlockRecords * kPageBytes);
  const std::span to = std::span(held_).first(pages * kPageBytes);
  const uint64_t at = number == 0 ? kPageBytes : block_ends_[number - 1];
  const uint64_t length = block_ends_[number] - at;
  if (length == to.size()) {
    read_at(fd_.get(), to.data(), length, at, path_);
  } else {
    packed_.resize(length);
    read_at(fd_.get(), packed_.data(), length, at, path_);
    if (!decompress_block(compression_, packed_, to)) {
      throw_error(ErrorKind::kImage, "{} is damaged at offset {}: a block cannot be decompressed", path_, at);
    }
  }
  held_block_ = number;
  return to;
}

void PageFileReader::read(uint64_t record, uint64_t count, std::byte* to) {
  check_records(record, count);
  if (compression_ == Compression::kNone) {
    read_at(fd_.get(), to, count * kPageBytes, offset_of(record), path_);
  } else {
    for (uint64_t done = 0; done < count;) {
      const uint64_t inside = (record + done) % kBlockRecords;
      const std::span from = block((record + done) / kBlockRecords).subspan(inside * kPageBytes);
      const uint64_t part = std::min(count - done, from.size() / kPageBytes);
      std::memcpy(to + done * kPageBytes, from.data(), part * kPageBytes);
      done += part;
    }
  }
}

void PageFileReader::read_scattered(uint64_t record, std::span<const iovec> to) {
  uint64_t count = 0;
  for (const iovec& part : to) count += part.iov_len / kPageBytes;
  check_records(record, count);
  size_t first = 0;
  if (compression_ == Compression::kNone) {
    // What a read cut short leaves is read part by part.
    ssize_t got = ::preadv(fd_.get(), to.data(), static_cast<int>(to.size()), static_cast<off_t>(offset_of(record)));
    if (got < 0 && errno != EINTR) throw_errno("cannot read {} at offset {}", path_, offset_of(record));
    for (; first < to.size() && got >= static_cast<ssize_t>(to[first].iov_len); ++first) {
      got -= static_cast<ssize_t>(to[first].iov_len);
      record += to[first].iov_len / kPageBytes;
    }
  }
  for (const iovec& part : to.subspan(first)) {
    read(record, part.iov_len / kPageBytes, static_cast<std::byte*>(part.iov_base));
    record += part.iov_len / kPageBytes;
  }
}

}  // namespace icp
