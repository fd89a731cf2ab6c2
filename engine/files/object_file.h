// SPDX-License-Identifier: GPL-2.0-or-later
// memfds, /dev/shm files and deleted files: their content is a memory object.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& object_file_kind();

}  // namespace icp
