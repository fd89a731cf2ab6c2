// SPDX-License-Identifier: GPL-2.0-or-later
// Regular files: found again by path, with position and flags.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& regular_file_kind();

// Whether it is a regular file whose content lies on a file system, rather than being made up by the kernel.
bool has_own_content(FileScan& scan, Description& description);

}  // namespace icp
