// SPDX-License-Identifier: GPL-2.0-or-later
// --checkpoint-interval, --checkpoint, --checkpoint-on, --checkpoint-dir, --restart-dir, --map-path,
// --checkpoint-files, --requeue-max,
// --checkpoint-mpi and their environment variables.
#pragma once

#include <string>

#include "spank/slurm_api.h"

namespace icp::spank {

struct Request {
  std::string interval;          // empty: not asked for
  std::string checkpoint_dir;    // absolute, or empty
  std::string restart_dir;       // absolute, "none", or empty
  std::string map_path;          // see coordinator/map_path.h
  std::string checkpoint_files;  // see coordinator/checkpoint_files.h
  std::string checkpoint_on;     // words and commas, "none", or empty
  std::string requeue_max;       // a number, or empty
  std::string mpi;               // tcp, auto, off, or empty: auto
  std::string refused;           // not empty: what it says cannot be done, and must not be passed over

  bool wants_agent() const {
    return !interval.empty() || (!restart_dir.empty() && restart_dir != "none") ||
           (!checkpoint_on.empty() && checkpoint_on != "none");
  }
};

// Registers the options: in every context, or Slurm does not carry them to the node.
void register_options(spank_t handle);

// In srun, sbatch, salloc, when all options are read: takes what only the environment says, makes directories absolute
// against the directory the command was typed in, and puts the result where the step finds it (SLURM_CHECKPOINT,
// SLURM_CHECKPOINT_DIR, SLURM_RESTART_DIR in the job's environment). False: a bad value; the sentence is out.
bool settle_options();

// In slurmstepd: what was asked of this step of the job, which may be a component of a heterogeneous one.
Request requested(spank_t handle, uint32_t job);

}  // namespace icp::spank
