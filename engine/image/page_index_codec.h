// SPDX-License-Identifier: GPL-2.0-or-later
// One table of a page index as bytes. docs/image-format.md explains the encoding with an example.
//
// `own` is always the version of the index file that holds the block: versions are stored as differences from it, so
// that a block cannot refer to the future. Decoding hostile bytes throws DecodeError.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/image/byte_codec.h"
#include "engine/image/page_index_impl.h"

namespace icp {

// No block is larger than this, whatever its table holds.
inline constexpr uint32_t kMaxBlockBytes = 16384;
// First byte of a block.
inline constexpr uint8_t kTagLeafRuns = 0x10;
inline constexpr uint8_t kTagLeafBytes = 0x20;
inline constexpr uint8_t kTagLeafPlanes = 0x30;  // interior tables: 1, 2 or 3, their level

struct ChildReference {
  unsigned slot = 0;
  StoredTable stored;
};

// Both append to `out`, including the block's checksum.
void encode_leaf(const IndexLeaf& leaf, uint32_t own, std::vector<uint8_t>& out);
// All children must have been stored.
void encode_table(const IndexTable& table, int level, uint32_t own, std::vector<uint8_t>& out);

// The leaf must be empty.
void decode_leaf(std::span<const uint8_t> block, uint32_t own, IndexLeaf& leaf);
std::vector<ChildReference> decode_table(std::span<const uint8_t> block, int level, uint32_t own);

}  // namespace icp
