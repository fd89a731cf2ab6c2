// SPDX-License-Identifier: GPL-2.0-or-later
// IPC namespaces kept alive by a file: namespaces(7), "bind mounting one of the files".
#pragma once

#include <cstdint>
#include <string>

#include "engine/base/unique_fd.h"

namespace icp {

// The namespace pinned on `path`; none when it is not there or an ordinary file (a crash before the mount).
UniqueFd open_pinned_namespace(const std::string& path);
// Makes an IPC namespace with the limits of the present one, moves the calling thread there and pins it on `path`.
// On an error the thread is back where it was, and nothing is pinned.
void make_pinned_namespace(const std::string& path);
// Takes all pins and the file away. Throws when the file stays.
void remove_pin(const std::string& path);
// Whether any process (not thread) is in the namespace.
bool namespace_in_use(uint64_t inode);

}  // namespace icp
