// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/amx_tiles.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <array>
#include <cstring>
#include <span>

#include "engine/base/error.h"
#include "engine/trace/xstate_layout.h"

namespace icp {
namespace {

// arch/x86/include/uapi/asm/prctl.h; Documentation/arch/x86/xstate.rst.
constexpr uint64_t kGetPermissions = 0x1022, kAskPermission = 0x1023;
constexpr size_t kAreaBytes = 16 << 10;  // legacy area, header and tiles end before that, zeros all of it
constexpr size_t kCodeBytes = 4096;

// xrstor64 (%rdi), of the features in edx:eax; syscall, whose number is then no call's.
constexpr std::array<uint8_t, 6> kLoad{0x48, 0x0f, 0xae, 0x2f, 0x0f, 0x05};

// In an extended state as ptrace shows it (not compacted).
bool has_tiles(std::span<const std::byte> xstate) {
  uint64_t features = 0;
  if (xstate.size() < kXstateHeader + sizeof features) return false;
  std::memcpy(&features, xstate.data() + kXstateHeader, sizeof features);
  return (features & kTileBit) != 0;
}

}  // namespace

void capture_tile_permission(CallBatch& calls, pb::Process& state) {
  calls.ask<uint64_t>(nullptr, SYS_arch_prctl, {kGetPermissions, CallBatch::kAnswer},
                      [&state](uint64_t features) { state.set_amx_tiles((features & kTileBit) != 0); });
}

void restore_tile_permission(RemoteProcess& remote, const pb::Process& state) {
  if (!state.amx_tiles()) return;
  const int64_t result = remote.syscall(SYS_arch_prctl, {kAskPermission, kTileFeature});
  if (result == 0) return;
  throw Error(ErrorKind::kSystem,
              fmt::format("process {} ({}) uses AMX's tile registers, which it does not get here: {}", state.pid(),
                          state.comm(), errno_text(static_cast<int>(-result))),
              static_cast<int>(-result), "restart on a node with AMX");
}

// The kernel makes the room when the thread itself touches the tiles: here, by loading some that are all zeros.
void make_room_for_tiles(RemoteProcess& remote, const pb::Thread& state) {
  if (!has_tiles(std::as_bytes(std::span(state.xstate())))) return;
  const RemoteAddr code{static_cast<uint64_t>(
      remote.call("mmap for AMX's tiles", SYS_mmap,
                  {0, kCodeBytes + kAreaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, ~0ull, 0}))};
  const RemoteAddr area = code + kCodeBytes;
  remote.write(code, std::as_bytes(std::span(kLoad)));
  remote.write_value(area + kXstateHeader, kTileBit);
  remote.call("mprotect", SYS_mprotect, {code.value, kCodeBytes, PROT_READ | PROT_EXEC});
  remote.at_instruction(code).syscall(static_cast<long>(kTileBit), {area.value, 0, 0});
  remote.call("munmap", SYS_munmap, {code.value, kCodeBytes + kAreaBytes});
}

}  // namespace icp
