// SPDX-License-Identifier: GPL-2.0-or-later
// icp scontrol: what the front end of scontrol executes for `scontrol checkpoint`. Not shown by icp --help: its line is
// scontrol's, not icp's.
#pragma once

#include <string>
#include <vector>

namespace icp {

// `words`: -Q if errors are not to be said, then the keyword as it was typed, and the rest. Returns the exit code.
int run_scontrol(std::vector<std::string> words);

}  // namespace icp
