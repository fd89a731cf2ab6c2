// SPDX-License-Identifier: GPL-2.0-or-later
// The mappings of an image, as hostile input.
#pragma once

#include "engine/image/image.pb.h"

namespace icp {

inline constexpr uint64_t kUserSpaceEnd = 0x7ffffffff000;  // TASK_SIZE, 4-level page tables

// Throws kImage for anything about an address space that cannot be: addresses, order, overlaps, kinds, advice. Files
// and objects are looked at elsewhere.
void check_mappings(const pb::AddressSpace& memory);

// True when the page store of the process holds this mapping's private pages.
bool takes_private_pages(const pb::Mapping& mapping);

}  // namespace icp
