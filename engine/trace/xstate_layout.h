// SPDX-License-Identifier: GPL-2.0-or-later
// Where things are in the extended state of a thread (the XSAVE area) that ptrace and signal frames show: Intel SDM
// vol. 1, 13.4; Documentation/arch/x86/xstate.rst.
#pragma once

#include <cstddef>
#include <cstdint>

namespace icp {

// The header follows the legacy area; its first field tells which features the area holds, a bit each.
inline constexpr size_t kXstateHeader = 512, kXstateMinimum = kXstateHeader + 64;  // bytes
// AMX's tiles: a thread has room for them from its first use on.
inline constexpr uint64_t kTileFeature = 18, kTileBit = 1ull << kTileFeature;

}  // namespace icp
