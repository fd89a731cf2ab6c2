// SPDX-License-Identifier: GPL-2.0-or-later
// eventfd(2): counter and mode.
#pragma once

#include <cstdint>

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& eventfd_kind();

// Whether reads take one off (EFD_SEMAPHORE) or all, found out by reading: for kernels whose fdinfo does not
// tell (before 6.5). `count` is the present value and is the value afterwards. Only while no other process
// can use the eventfd.
bool probe_eventfd_semaphore(int fd, uint64_t count);

}  // namespace icp
