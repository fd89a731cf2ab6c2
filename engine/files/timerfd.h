// SPDX-License-Identifier: GPL-2.0-or-later
// timerfd_create(2): time left, interval, expirations not read yet.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& timerfd_kind();

}  // namespace icp
