// SPDX-License-Identifier: GPL-2.0-or-later
// Open directories, with their reading position.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& directory_kind();

}  // namespace icp
