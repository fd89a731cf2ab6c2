// SPDX-License-Identifier: GPL-2.0-or-later
// SPANK's C header, and typed shorthands for it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <cstring>

extern "C" {
#include <slurm/spank.h>
}

#include <optional>
#include <string>

#include "coordinator/slurm_api.h"
#include "engine/base/printable.h"

namespace icp::spank {

// A number Slurm knows in this context (see the table in `man 8 spank`); nothing when it does not.
template <typename T>
std::optional<T> item(spank_t handle, spank_item_t which) {
  T value{};
  if (spank_get_item(handle, which, &value) != ESPANK_SUCCESS) return std::nullopt;
  return value;
}

// A variable of the job's environment, which is the user's to say anything with; empty when unset. One of more than 64
// KiB is so many blanks: whoever looks at its length says that it is too long, rather than that there is none.
inline std::string job_env(spank_t handle, const char* name) {
  std::string value(64 << 10, '\0');
  const spank_err_t error = spank_getenv(handle, name, value.data(), static_cast<int>(value.size()));
  if (error == ESPANK_NOSPACE) return std::string(value.size(), ' ');
  if (error != ESPANK_SUCCESS) return {};
  value.resize(std::strlen(value.c_str()));
  return value;
}

// Into the log of slurmd or slurmstepd. The text may hold what a user has typed.
inline void complain(const std::string& text) { slurm_error("spank_icp: %s", printable(text).c_str()); }

}  // namespace icp::spank
