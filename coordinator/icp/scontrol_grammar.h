// SPDX-License-Identifier: GPL-2.0-or-later
// The line of `scontrol checkpoint`, as Slurm 18.08 read it. docs/man/scontrol-checkpoint.1 has what differs.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

// Seconds that a create, vacate or requeue may take when MaxWait= is not given.
inline constexpr uint32_t kDefaultMaxWait = 10;

struct ScontrolLine {
  net::Request request;             // if `errors` is empty
  std::vector<std::string> errors;  // lines for stderr; the exit code is then 1
};

// `words` begin with the keyword as it was typed. Pure, thread-safe.
ScontrolLine parse_scontrol_line(const std::vector<std::string>& words);

// OP_NONE if it is none. Abbreviations as Slurm took them: "a", "d", "en", "re" (requeue), "res" (restart) ...
net::Operation scontrol_operation(std::string_view word);

// What a reply makes scontrol print and end with.
struct ScontrolAnswer {
  std::string out, err;
  int exit_code = 0;
};
ScontrolAnswer scontrol_answer(net::Operation operation, const net::Reply& reply);

}  // namespace icp
