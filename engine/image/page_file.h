// SPDX-License-Identifier: GPL-2.0-or-later
// <store>.<version>.bin: the page records that one version of a store wrote.
//
//   header 4096 bytes, records, their hashes of 16 bytes each, checksums of the hashes, trailer 56 bytes
//
// Plain records lie at multiples of the page size, so that a file can be mapped or read with O_DIRECT. Compressed ones
// lie in blocks of kBlockRecords; the blocks' lengths then follow the hashes. There is a checksum for each
// kPieceRecords hashes, so that whoever wants a few records of a large file need not read them all.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/base/mutex.h"
#include "engine/base/unique_fd.h"
#include "engine/image/compression.h"
#include "engine/image/image_dir.h"
#include "engine/image/page_hash.h"

namespace icp {

// Appends and overwrites records of a file being made. Small pieces are collected to large writes.
//
// append() and overwrite() only say what goes where; write() compresses and writes it. One thread at a time, but for
// write(), which any number of threads may call side by side.
class PageFileWriter {
 public:
  // What is still to be written.
  class Pending {
    friend PageFileWriter;
    struct Piece {
      uint64_t record;
      const std::byte* pages;
      uint64_t count;
    };
    struct Batch {
      uint64_t number;  // of the batches of a compressed file, which follow one another
      uint64_t record;
      bool compressing;
      std::vector<std::byte> bytes;
    };
    std::vector<Piece> pieces_;
    std::vector<Batch> batches_;
  };

  PageFileWriter(VersionWriter& version, const std::string& store);

  static constexpr uint64_t kLargeFile = (512 << 20) / 4096;  // records

  uint64_t records() const { return hashes_.size(); }
  // Returns the number of the first record. `hashes` are those of the pages. The pages must stay until `pending` is
  // written, which finish() and the writes of other threads wait for (or are told by give_up()).
  uint64_t append(const std::byte* pages, const PageHash* hashes, uint64_t count, Pending& pending);
  // Whether the record can be given another content for less than a new one costs. Not if its block is compressed
  // already; nor in a large file, whose pages the kernel is writing to disk by now: single ones that change meanwhile
  // are written twice, at the speed of the disk.
  bool can_overwrite(uint64_t record) const {
    return record >= tail_first_ || (compression_ == Compression::kNone && records() < kLargeFile);
  }
  // Waits for another thread that is about to write what the record held before.
  void overwrite(uint64_t record, const std::byte* pages, const PageHash* hashes, uint64_t count, Pending& pending);
  void write(const Pending& pending);
  // In a handler: because of its exception something pending will not be written. No write waits for it; writes that
  // would have, and finish(), throw the same.
  void give_up();
  // Blocks begun from now on are (not) compressed, in a file that has compression at all.
  void set_compressing(bool on) { compressing_ = on; }
  // Starts writing to disk what is there, and waits for it.
  void flush_records();
  // Writes what is still held back, the hashes and the trailer; records the file in the version. The version may have
  // been given another number since (a compaction does that).
  void finish(VersionWriter& version);

 private:
  void write_header();
  void write_out(uint64_t record, const std::byte* pages, uint64_t count) const;
  void write_compressed(const Pending::Batch& batch);
  // All of the tail, or with `whole_blocks` only what makes whole blocks, is to be written.
  void take_tail(bool whole_blocks, Pending& pending);
  void flush_tail(bool whole_blocks);
  void wait_for_others(uint64_t record, uint64_t count, const Pending& own);

  std::string store_, name_, path_;
  uint32_t version_;
  Compression compression_;
  bool compressing_ = true;
  UniqueFd fd_;
  std::vector<PageHash> hashes_;
  // The last records, not written yet: [tail_first_, tail_first_ + tail_.size() / 4096) up to records().
  std::vector<std::byte> tail_;
  uint64_t tail_first_ = 0;
  uint64_t batches_ = 0;  // of compressed blocks, handed out by take_tail()

  Mutex writing_mutex_;
  Condition written_;
  std::exception_ptr failure_ ICP_GUARDED_BY(writing_mutex_);  // something will never be written
  // Plain files: first records of batches that are still to be written, and how many each has.
  std::map<uint64_t, uint64_t> to_write_ ICP_GUARDED_BY(writing_mutex_);
  // Compressed files: lengths of the blocks written, and where the next goes. Batches are compressed side by side, and
  // get their places in turn.
  uint64_t turn_ ICP_GUARDED_BY(writing_mutex_) = 0;
  std::vector<uint32_t> blocks_ ICP_GUARDED_BY(writing_mutex_);
  uint64_t next_block_at_ ICP_GUARDED_BY(writing_mutex_) = 0;
};

// Reads records of a page file of a committed version. The hashes are read and checked as they are needed, 64 KiB at a
// time, and stay in memory (16 bytes a record). One thread.
class PageFileReader {
 public:
  // `file` was opened through `version`.
  PageFileReader(const VersionReader& version, const std::string& store, uint32_t file_version);

  // Reads records without looking at what is in them: check_pages() does that.
  void read(uint64_t record, uint64_t count, std::byte* to);
  // Consecutive records from `record` on to several places (at most IOV_MAX) of whole pages each.
  void read_scattered(uint64_t record, std::span<const iovec> to);
  void check_pages(uint64_t record, uint64_t count, const std::byte* pages);
  uint64_t records() const { return records_; }
  // Of a record below records(), while the file is open.
  const PageHash& hash(uint64_t record);
  // kImage unless records [record, record + count) exist.
  void check_records(uint64_t record, uint64_t count) const;
  // Descriptors are few, files may be many: closed and opened again without reading the table again. kImage when the
  // file is no longer the same one.
  void close() { fd_.reset(); }
  void reopen(const VersionReader& version);
  bool is_open() const { return static_cast<bool>(fd_); }

 private:
  void check_header(const std::string& store) const;
  void load_tables(const std::string& store);
  void load_blocks(std::span<const std::byte> lengths, uint64_t end);
  std::vector<PageHash>& load_piece(uint64_t number);
  // The pages of a block, decompressed; valid until the next call.
  std::span<const std::byte> block(uint64_t number);

  std::string name_, path_;
  uint32_t version_;
  UniqueFd fd_;
  uint64_t size_ = 0, inode_ = 0, device_ = 0, records_ = 0;
  uint64_t hashes_at_ = 0;                     // offset
  std::vector<uint64_t> checksums_;            // of the pieces of the hashes
  std::vector<std::vector<PageHash>> pieces_;  // empty: not read yet
  Compression compression_ = Compression::kNone;
  std::vector<uint64_t> block_ends_;  // offsets; compressed files only
  uint64_t held_block_ = ~0ull;
  std::vector<std::byte> held_, packed_;
};

}  // namespace icp
