// SPDX-License-Identifier: GPL-2.0-or-later
// pidfd_open(2) of processes of the capsule; made inside the process, where pids have their old numbers.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& pidfd_kind();

}  // namespace icp
