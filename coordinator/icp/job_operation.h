// SPDX-License-Identifier: GPL-2.0-or-later
// What create, vacate, requeue, move, restart, enable and disable of a Slurm job have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "coordinator/icp/cli.h"
#include "coordinator/icp/job_client.h"

namespace icp {

struct JobOptions {
  std::string config, job, image_dir, max_wait, nodes;
  bool stick_to_nodes = false, wait = false, json = false;

  CLI::Option* add_job(CLI::App& app);        // JOB, not required
  CLI::Option* add_config(CLI::App& app);     // --config
  CLI::Option* add_json(CLI::App& app);       // --json
  CLI::Option* add_image_dir(CLI::App& app);  // --image-dir
};

// JOB or JOB.STEP. Throws kUsage if it is neither.
JobId job_from(const std::string& text);

// Throws Error for an answer that is a refusal; `what` begins the sentence.
void check_reply(const net::Reply& reply, const std::string& what);

// Asks icpctld, waits for the end if that is asked for, and prints how it went. Returns the exit code; throws Error.
int carry_out(net::Operation operation, const std::string& name, const JobOptions& options, const Cli& cli);

}  // namespace icp
