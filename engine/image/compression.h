// SPDX-License-Identifier: GPL-2.0-or-later
// Compression of page records, in blocks of up to 64 KiB. Stateless, hence thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace icp {

// The numbers stand in page files.
enum class Compression : uint32_t { kNone = 0, kZstd = 1, kLz4 = 2 };

std::string_view to_string(Compression compression);
// "none", "zstd" or "lz4"; anything else is kUsage.
Compression parse_compression(std::string_view name);

// Records compressed together.
inline constexpr uint64_t kBlockRecords = 16;

// Puts the compressed bytes into `to` and returns true, or returns false if they would not be fewer.
bool compress_block(Compression compression, std::span<const std::byte> from, std::vector<std::byte>& to);
// Fills all of `to`. False for hostile bytes: whatever they say, no more than `to` holds is written.
bool decompress_block(Compression compression, std::span<const std::byte> from, std::span<std::byte> to);

}  // namespace icp
