// SPDX-License-Identifier: GPL-2.0-or-later
// Everything else: refused, each by its name.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& unsupported_kind();

}  // namespace icp
