// SPDX-License-Identifier: GPL-2.0-or-later
// Jobs and steps as people name them. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace icp {

// Slurm's step ids below 0.
inline constexpr int32_t kExternStep = -4, kBatchStep = -5, kInteractiveStep = -6;

struct JobId {
  uint32_t job = 0;             // Slurm's own grammar allows 0, which no job has
  std::optional<int32_t> step;  // none: the whole job

  bool operator==(const JobId&) const = default;
};

// "12", "12.0", "12.batch". Nothing when `text` is none of these.
std::optional<JobId> parse_job_id(std::string_view text);

std::string step_text(int32_t step);                    // "0", "batch"
std::string job_step_text(uint32_t job, int32_t step);  // "12.0", "12.batch"

}  // namespace icp
