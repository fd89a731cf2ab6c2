// SPDX-License-Identifier: GPL-2.0-or-later
// epoll(7) sets.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& epoll_kind();

}  // namespace icp
