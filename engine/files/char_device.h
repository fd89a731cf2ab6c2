// SPDX-License-Identifier: GPL-2.0-or-later
// The devices that are the same everywhere: null, zero, full, random, urandom. Others are refused by name.
#pragma once

#include <sys/types.h>

#include "engine/files/file_kind.h"

namespace icp {

bool is_plain_device(dev_t rdev);

const FileKind& char_device_kind();

}  // namespace icp
