// SPDX-License-Identifier: GPL-2.0-or-later
// Descriptors of namespaces (/proc/PID/ns/net ...) that processes of the capsule are in: those are the ones that these
// processes are in after a restart.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& namespace_file_kind();

}  // namespace icp
