// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/compression.h"

#include <lz4.h>
#include <zstd.h>

#include <memory>
#include <new>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr int kZstdLevel = 1;  // about 400 MB/s; higher levels save little on pages

// One a thread: making a context costs more than compressing a block.
ZSTD_CCtx* compressor() {
  thread_local const std::unique_ptr<ZSTD_CCtx, size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
  if (!context) throw std::bad_alloc();
  return context.get();
}

ZSTD_DCtx* decompressor() {
  thread_local const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> context(ZSTD_createDCtx(), ZSTD_freeDCtx);
  if (!context) throw std::bad_alloc();
  return context.get();
}

const char* chars(const std::byte* bytes) { return reinterpret_cast<const char*>(bytes); }
char* chars(std::byte* bytes) { return reinterpret_cast<char*>(bytes); }

}  // namespace

std::string_view to_string(Compression compression) {
  switch (compression) {
    case Compression::kZstd:
      return "zstd";
    case Compression::kLz4:
      return "lz4";
    case Compression::kNone:
      break;
  }
  return "none";
}

Compression parse_compression(std::string_view name) {
  for (const Compression one : {Compression::kNone, Compression::kZstd, Compression::kLz4}) {
    if (name == to_string(one)) return one;
  }
  throw_error(ErrorKind::kUsage, "unknown compression '{}': use none, zstd or lz4", name);
}

bool compress_block(Compression compression, std::span<const std::byte> from, std::vector<std::byte>& to) {
  // Room for less than came in: what does not fit is not worth it.
  to.resize(from.size() - 1);
  size_t bytes = 0;
  if (compression == Compression::kZstd) {
    bytes = ZSTD_compressCCtx(compressor(), to.data(), to.size(), from.data(), from.size(), kZstdLevel);
    if (ZSTD_isError(bytes) != 0) return false;
  } else if (compression == Compression::kLz4) {
    const int got = LZ4_compress_default(chars(from.data()), chars(to.data()), static_cast<int>(from.size()),
                                         static_cast<int>(to.size()));
    if (got <= 0) return false;
    bytes = static_cast<size_t>(got);
  } else {
    return false;
  }
  to.resize(bytes);
  return true;
}

bool decompress_block(Compression compression, std::span<const std::byte> from, std::span<std::byte> to) {
  if (compression == Compression::kZstd) {
    return ZSTD_decompressDCtx(decompressor(), to.data(), to.size(), from.data(), from.size()) == to.size();
  }
  if (compression == Compression::kLz4) {
    return LZ4_decompress_safe(chars(from.data()), chars(to.data()), static_cast<int>(from.size()),
                               static_cast<int>(to.size())) == static_cast<int>(to.size());
  }
  return false;
}

}  // namespace icp
