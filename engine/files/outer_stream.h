// SPDX-License-Identifier: GPL-2.0-or-later
// A task's standard stream: not saved, replaced by the new task's at a restart.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& outer_stream_kind();

}  // namespace icp
