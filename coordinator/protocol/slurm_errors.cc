// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/protocol/slurm_errors.h"

#include <array>
#include <string_view>

#include "engine/base/error.h"

namespace icp::net {
namespace {

struct Text {
  uint32_t code;
  std::string_view text;
};

constexpr std::array<Text, 11> kTexts{{
    {kSlurmSuccess, "No error"},
    {kInProgress, "Operation already in progress"},
    {kAccessDenied, "Access/permission denied"},
    {kInvalidJobId, "Invalid job id specified"},
    {kAlreadyDone, "Job/step already completing or completed"},
    {kJobPending, "Job is pending execution"},
    {kNotSupported, "Requested operation not supported on this system"},
    {kDisabled, "Requested operation is presently disabled"},
    {kJobNotFinished, "Job is not finished"},
    {kTimedOut, "Socket timed out on send/recv operation"},
    {kCheckpointFailed, "The checkpoint failed"},
}};

const Text* find(uint32_t code) {
  for (const Text& entry : kTexts)
    if (entry.code == code) return &entry;
  return nullptr;
}

}  // namespace

std::string slurm_error_text(uint32_t code) {
  if (const Text* entry = find(code)) return std::string(entry->text);
  return code < 1000 ? errno_text(static_cast<int>(code)) : fmt::format("Unknown error {}", code);
}

bool is_slurm_error(uint32_t code) {
  return code != kSlurmSuccess && code != kCheckpointFailed && find(code) != nullptr;
}

}  // namespace icp::net
