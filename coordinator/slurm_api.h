// SPDX-License-Identifier: GPL-2.0-or-later
// Slurm's headers, and what differs in them from one Slurm to the next: 22.05 to 26.05 are one source here. What a
// version has is found by the types its headers declare, not by its number, since distributions and sites carry patches
// from one to the other. The one thing types cannot tell, whether a constant is there, is asked by
// spank/CMakeLists.txt.
//
//   from    what changed                                                     here
//   24.11   slurm_get_errno() is gone; it returned errno                     (errno)
//   25.05   slurm_spank_init_failure_mode                                    spank_icp.cc
//   25.11   a job's number lies in its step_id                               job_number
//   26.05   jobs are named by slurm_step_id_t in calls, by number before     job_name
//   26.05   cgroup v2: a job's directory is its SLUID                        coordinator/icpstepd/cgroups.h
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <type_traits>

extern "C" {
#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>
}

namespace icp::slurm {

// What a call of libslurm wants for a job: its number, or a step id that names the whole job.
template <typename Name>
Name name_as(uint32_t job) {
  if constexpr (std::is_integral_v<Name>) {
    return job;
  } else {
    Name name{};  // a sluid of 0 is unknown
    name.job_id = job;
    name.step_id = NO_VAL;
    name.step_het_comp = NO_VAL;
    return name;
  }
}
template <typename Answer, typename Name>
Name named_second(int (*)(Answer, Name, uint16_t));
template <typename Name, typename... More>
Name named_first(int (*)(Name, More...));

inline auto job_name(uint32_t job) { return name_as<decltype(named_second(&slurm_load_job))>(job); }
static_assert(std::is_same_v<decltype(named_first(&slurm_requeue)), decltype(job_name(0))> &&
              std::is_same_v<decltype(named_first(&slurm_kill_job)), decltype(job_name(0))>);

// Where a job's description has its number: slurm_job_info_t, job_desc_msg_t.
template <typename Message>
auto& job_number(Message& message) {
  if constexpr (requires { message.step_id.job_id; }) {
    return message.step_id.job_id;
  } else {
    return message.job_id;
  }
}

}  // namespace icp::slurm
