// SPDX-License-Identifier: GPL-2.0-or-later
// --checkpoint-mpi: keeps MPI libraries off transports whose state is in a network card, which no version can hold.
// Knows no Slurm.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace icp::spank {

inline constexpr const char* kMpiGrammar = "one of tcp, auto and off";
bool is_mpi_choice(std::string_view text);

// Whether this node has devices with which MPI would go past the kernel: InfiniBand and RoCE, Omni-Path, Slingshot.
// `sys_class` is /sys/class.
bool has_kernel_bypass(const std::string& sys_class);

// Variables to set for UCX, libfabric and Open MPI so that they use TCP and, within a node, shared memory. Those of a
// library of which the user has set any that chooses transports are left alone. `choice`: tcp; auto (or empty), where
// `bypass` alone sets some; off.
std::vector<std::pair<std::string, std::string>> mpi_variables(std::string_view choice, bool bypass,
                                                               const std::function<bool(const std::string&)>& is_set);

}  // namespace icp::spank
