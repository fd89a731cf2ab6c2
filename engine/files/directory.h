// SPDX-License-Identifier: GPL-2.0-or-later
// Open directories, with their reading position.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& directory_kind();

// A directory that nothing leads to, by what it was at the version: one for all who had it, made where it was, if its
// name is free, and removed at once. O_PATH, the context's.
int removed_directory(RestoreContext& context, const RestoreContext::Inode& inode, const std::string& path,
                      uint32_t mode);

}  // namespace icp
