// SPDX-License-Identifier: GPL-2.0-or-later
// Descriptors opened with O_PATH of what is no regular file and no directory (those are with their kinds): symbolic
// links, sockets, FIFOs, devices, files in /dev/shm. They stand for a place, and nothing else of it is saved.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& path_descriptor_kind();

}  // namespace icp
