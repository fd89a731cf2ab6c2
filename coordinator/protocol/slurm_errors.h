// SPDX-License-Identifier: GPL-2.0-or-later
// Slurm's error numbers as `scontrol checkpoint` knows them, with Slurm's texts word for word: scripts match them.
// Thread-safe.
#pragma once

#include <cstdint>
#include <string>

namespace icp::net {

// slurm/slurm_errno.h; below 1000 errno itself.
enum SlurmError : uint32_t {
  kSlurmSuccess = 0,
  kInProgress = 114,  // EALREADY: a request while one runs
  kAccessDenied = 2002,
  kInvalidJobId = 2017,
  kAlreadyDone = 2021,
  kJobPending = 2024,
  kNotSupported = 2036,
  kDisabled = 2037,
  kJobNotFinished = 2088,
  kTimedOut = 5004,
  kCheckpointFailed = 2200,  // ours, no number of Slurm's: the text that goes with it says what
};

// "Invalid job id specified". Numbers below 1000 have errno's text; others that are not in the list above "Unknown
// error <code>", as slurm_strerror() has it.
std::string slurm_error_text(uint32_t code);

// Whether `code` is one of Slurm's in the list above, 0 excepted.
bool is_slurm_error(uint32_t code);

}  // namespace icp::net
