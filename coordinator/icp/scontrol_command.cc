// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/scontrol_command.h"

#include <fmt/format.h>

#include "coordinator/icp/job_client.h"
#include "coordinator/icp/report.h"
#include "coordinator/icp/scontrol_grammar.h"
#include "coordinator/protocol/slurm_errors.h"

namespace icp {

namespace {

ScontrolAnswer answer_to(net::Request request) {
  try {
    if (!request.image_dir().empty()) request.set_image_dir(absolute_dir(request.image_dir()));
    net::Reply reply;
    if (request.job() == 0) {
      reply.set_code(net::kInvalidJobId);  // icpctld would take it for all jobs
    } else {
      reply = JobClient("").ask(request);
    }
    return scontrol_answer(request.operation(), reply);
  } catch (const Error& error) {
    return {"", fmt::format("scontrol_checkpoint error: {}\n", sentence(error)), 1};
  }
}

}  // namespace

int run_scontrol(std::vector<std::string> words) {
  const bool quiet = !words.empty() && words.front() == "-Q";
  if (quiet) words.erase(words.begin());
  const ScontrolLine line = parse_scontrol_line(words);
  if (!line.errors.empty()) {
    for (const std::string& text : line.errors)
      if (!quiet) fmt::print(stderr, "{}\n", text);
    return 1;
  }
  const ScontrolAnswer answer = answer_to(line.request);
  fmt::print("{}", answer.out);
  if (!quiet) fmt::print(stderr, "{}", answer.err);
  return answer.exit_code;
}

}  // namespace icp
