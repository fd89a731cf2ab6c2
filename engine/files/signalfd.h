// SPDX-License-Identifier: GPL-2.0-or-later
// signalfd(2): its mask; the signals themselves are pending in the process.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& signalfd_kind();

}  // namespace icp
