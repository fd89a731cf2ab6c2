// SPDX-License-Identifier: GPL-2.0-or-later
// What icpstepd finds open when it is started for a step.
#pragma once

namespace icp::protocol {

inline constexpr int kAgentControl = 3;  // slurmstepd's: see kHello
inline constexpr int kAgentTasks = 4;    // the tasks': see kReady

}  // namespace icp::protocol
