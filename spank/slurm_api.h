// SPDX-License-Identifier: GPL-2.0-or-later
// Slurm's C header, and typed shorthands for it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <cstring>

extern "C" {
#include <slurm/slurm.h>
#include <slurm/spank.h>
}

#include <optional>
#include <string>

namespace icp::spank {

// A number Slurm knows in this context (see the table in `man 8 spank`); nothing when it does not.
template <typename T>
std::optional<T> item(spank_t handle, spank_item_t which) {
  T value{};
  if (spank_get_item(handle, which, &value) != ESPANK_SUCCESS) return std::nullopt;
  return value;
}

// A variable of the job's environment; empty when unset.
inline std::string job_env(spank_t handle, const char* name) {
  std::string value(64 << 10, '\0');  // node lists can be long
  if (spank_getenv(handle, name, value.data(), static_cast<int>(value.size())) != ESPANK_SUCCESS) return {};
  value.resize(std::strlen(value.c_str()));
  return value;
}

}  // namespace icp::spank
