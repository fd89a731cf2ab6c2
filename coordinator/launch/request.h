// SPDX-License-Identifier: GPL-2.0-or-later
// How a process of a batch script has called srun. Standard library only: icp-proxy, a process of the job, links it.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace icp::launch {

inline constexpr size_t kMaxRequest = 1 << 20;  // bytes, encoded; an environment has a few KiB

struct Request {
  std::string program;    // srun itself, an absolute path
  std::string directory;  // absolute
  mode_t umask = 0;
  std::vector<std::string> arguments;    // with argv[0]
  std::vector<std::string> environment;  // "NAME=value"

  // Each part ended by NUL: "srun 1", program, directory, umask (decimal), number of arguments, arguments, environment.
  std::string encode() const;
  // Nothing when that is no request.
  static std::optional<Request> decode(std::string_view bytes);
};

// True for a call that starts the daemons by which an MPI launcher (mpirun, mpiexec) reaches the other nodes: the
// step has connections with the script then. A program's own srun has none.
bool starts_daemons(const std::vector<std::string>& arguments);

// For a restart, in an allocation of which `allocation` ("NAME=value") is the environment: SLURM_* are the new job's,
// and nodes are named no more when the job has others than it had, and no more asked
// for than it has.
Request in_new_allocation(Request request, const std::vector<std::string>& allocation);

// Puts NAME=value in place of what is there of that name; without a value ("NAME") removes it.
void set_variable(std::vector<std::string>& environment, const std::string& name_value);

}  // namespace icp::launch
