// SPDX-License-Identifier: GPL-2.0-or-later
// AMX's tile registers, for processes under test.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdint>

namespace icp::test {

// For this process, and what it forks. False: the processor or the kernel has none.
inline bool ask_for_tiles() {
  constexpr int kAskPermission = 0x1023, kTileFeature = 18;
  return ::syscall(SYS_arch_prctl, kAskPermission, kTileFeature) == 0;
}

inline bool processor_has_tiles() {
  const pid_t probe = ::fork();  // so that this process goes on without
  if (probe == 0) ::_exit(ask_for_tiles() ? 0 : 1);
  int status = 0;
  return ::waitpid(probe, &status, 0) == probe && status == 0;
}

using Tile = std::array<uint8_t, 16 * 64>;

// GCC 12's intrinsics do not say that they read or write memory.
inline void settle_memory(const void* at) { asm volatile("" : : "r"(at) : "memory"); }

__attribute__((target("amx-tile"))) inline void load_tile(const Tile& tile) {
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } shape;
  shape.row_bytes[3] = 64;
  shape.rows[3] = 16;
  settle_memory(&shape);
  settle_memory(tile.data());
  _tile_loadconfig(&shape);
  _tile_loadd(3, tile.data(), 64);
}

__attribute__((target("amx-tile"))) inline Tile stored_tile() {
  Tile tile{};
  settle_memory(tile.data());
  _tile_stored(3, tile.data(), 64);
  settle_memory(tile.data());
  _tile_release();
  return tile;
}

inline Tile patterned(uint8_t seed) {
  Tile tile{};
  for (size_t i = 0; i < tile.size(); ++i) tile[i] = static_cast<uint8_t>(seed + i * 7);
  return tile;
}

}  // namespace icp::test
