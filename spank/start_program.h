// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

namespace icp::spank {

// Starts argv[0] as a child of nobody of Slurm's (forked twice, own session), in the directory /, with /dev/null as its
// streams, `third` and `fourth` as its descriptors 3 and 4, and no others. Waits until it runs. Returns an errno value;
// 0: it does.
int start_program(const char* const* argv, const char* const* envp, int third, int fourth);

}  // namespace icp::spank
