// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <sys/types.h>

#include <functional>

namespace icp {

// Does `work` while the process keeps its number, so that what is written about the number is about the process: it is
// traced meanwhile, and one that ends is not gone before its tracer lets it go, whatever its parent does. `work` runs
// in a child of this process, which is the tracer; what it throws is thrown here. Needs the right to trace the process.
void with_kept_number(pid_t pid, const std::function<void()>& work);

}  // namespace icp
