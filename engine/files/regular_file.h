// SPDX-License-Identifier: GPL-2.0-or-later
// Regular files: found again by path, with position and flags.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& regular_file_kind();

}  // namespace icp
