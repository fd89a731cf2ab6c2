// SPDX-License-Identifier: GPL-2.0-or-later
// <store>.<version>.bin: the page records that one version of a store wrote.
//
//   header 4096 bytes, records of 4096 bytes, their checksums of 4 bytes each, trailer 48 bytes
//
// Records lie at multiples of the page size, so that a file can be mapped or read with O_DIRECT.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/image/image_dir.h"

namespace icp {

// Appends and overwrites records of a file being made. Small pieces are collected to large writes. One thread.
class PageFileWriter {
 public:
  PageFileWriter(VersionWriter& version, const std::string& store);

  uint64_t records() const { return checksums_.size(); }
  // Returns the number of the first record.
  uint64_t append(const std::byte* pages, uint64_t count);
  void overwrite(uint64_t record, const std::byte* pages, uint64_t count);
  // Writes what is still held back, the checksums and the trailer; records the file in the version.
  void finish(VersionWriter& version);

 private:
  void write_out(uint64_t record, const std::byte* pages, uint64_t count);
  void flush_tail();

  std::string name_, path_;
  uint64_t store_hash_;
  uint32_t version_;
  UniqueFd fd_;
  std::vector<uint32_t> checksums_;
  // The last records, not written yet: [tail_first_, tail_first_ + tail_.size() / 4096) up to records().
  std::vector<std::byte> tail_;
  uint64_t tail_first_ = 0;
};

// Reads records of a page file of a committed version. The checksum table is read and checked when the file is first
// opened and stays in memory (4 bytes a record). One thread.
class PageFileReader {
 public:
  // `file` was opened through `version`.
  PageFileReader(const VersionReader& version, const std::string& store, uint32_t file_version);

  void read(uint64_t record, uint64_t count, std::byte* to);
  uint64_t records() const { return checksums_.size(); }
  // Descriptors are few, files may be many: closed and opened again without reading the table again. kImage when the
  // file is no longer the same one.
  void close() { fd_.reset(); }
  void reopen(const VersionReader& version);
  bool is_open() const { return static_cast<bool>(fd_); }

 private:
  void check_header(const std::string& store) const;
  void load_checksums(const std::string& store);

  std::string name_, path_;
  uint32_t version_;
  UniqueFd fd_;
  uint64_t size_ = 0, inode_ = 0, device_ = 0;
  std::vector<uint32_t> checksums_;
};

}  // namespace icp
