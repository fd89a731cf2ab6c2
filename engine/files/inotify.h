// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& inotify_kind();

}  // namespace icp
