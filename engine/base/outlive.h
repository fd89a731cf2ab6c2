// SPDX-License-Identifier: GPL-2.0-or-later
// Work that comes to its end though this process is killed in the middle of it.
#pragma once

#include <functional>

namespace icp {

// Runs `work` in a process of its own that has this one's memory and descriptors, as after vfork(2): the calling thread
// waits for it. SIGKILL for this process leaves it running, so what it has begun to change outside is changed back. All
// signals are blocked in it. Throws what `work` throws. Not for long work: whoever waits for this process waits for it.
void run_to_the_end(const std::function<void()>& work);

}  // namespace icp
