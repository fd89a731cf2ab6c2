// SPDX-License-Identifier: GPL-2.0-or-later
// Files and directories below /proc/PID, opened for reading: of processes of the capsule, of its init (/proc/1), and of
// processes that have ended, of which nothing can be read any more. Opened again inside the process, where pids have
// their old numbers.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& process_file_kind();

}  // namespace icp
