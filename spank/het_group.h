// SPDX-License-Identifier: GPL-2.0-or-later
// Options of the components of a heterogeneous step: srun OPTIONS PROGRAM : OPTIONS PROGRAM. Slurm tells a plugin only
// what the last component was given.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "spank/slurm_api.h"

namespace icp::spank {

// In srun: what each component on the command line says of an option, in order; an empty text where it says nothing.
// Nothing at all where it is said once, for the whole step then, and where the last one said is not `last`, as Slurm
// has read it: then a word of a program looked like the option.
std::vector<std::string> component_values(const std::vector<std::string>& words, std::string_view option,
                                          std::string_view last);
// The words of this process's command line.
std::vector<std::string> own_command_line();

// In slurmstepd: which component this job is, by its number.
std::optional<int> het_group(spank_t handle, uint32_t job);

// "SLURM_RESTART_DIR_HET_GROUP_1"
std::string group_variable(std::string_view name, int group);
// The value of such a variable for a component that was not given the option.
inline constexpr std::string_view kNotGiven = "-";

}  // namespace icp::spank
