// SPDX-License-Identifier: GPL-2.0-or-later
// icpstepd: started by the SPANK plugin, never by hand but for check-config.
#include <fcntl.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "coordinator/config.h"
#include "coordinator/icpstepd/agent_broker.h"
#include "coordinator/icpstepd/cgroups.h"
#include "coordinator/icpstepd/job_end.h"
#include "coordinator/icpstepd/logging.h"
#include "coordinator/icpstepd/step_agent.h"
#include "coordinator/protocol/agent_sockets.h"
#include "engine/base/error.h"

namespace {

using namespace icp;

struct Options {
  std::string config = "/etc/slurm-icp/icp.yaml";
  std::string node;
  uint32_t job = 0, uid = 0, restarts = 0;
  pid_t part_of = 0;
};

// A wrong file must not keep the node from cleaning up: defaults then, and the error is said.
Config load_config(const std::string& path, std::string& problem) {
  try {
    return Config::load(path);
  } catch (const Error& error) {
    problem = error.what();
    return {};
  }
}

int run_step(const Options& options) {
  constexpr int kHelloTimeout = 10'000;
  if (options.part_of != 0) {
    // Of an agent that has other capsules of the step on this node: without it this one is no use.
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::prctl(PR_SET_NAME, "icpstepd");  // it is executed as /proc/self/exe
    if (::getppid() != options.part_of) return 1;
  }
  UniqueFd control(protocol::kAgentControl), tasks(protocol::kAgentTasks);
  ::fcntl(control.get(), F_SETFD, FD_CLOEXEC);
  ::fcntl(tasks.get(), F_SETFD, FD_CLOEXEC);
  protocol::Packet hello;
  if (protocol::receive_packet(control.get(), hello, kHelloTimeout) != protocol::Received::kPacket) return 1;
  const auto facts = protocol::StepFacts::from_packet(hello);
  if (!facts) return 1;
  std::string problem;
  const Config config = load_config(options.config, problem);
  start_logging(config, fmt::format("{} {}.{}", facts->node, facts->job, protocol::step_name(facts->step)));
  if (!problem.empty()) spdlog::error("{}", problem);
  leave_job_cgroups(facts->job);
  spdlog::info("user {}, {} task{}, interval {}, restart from {}", facts->uid, facts->local_tasks,
               facts->local_tasks == 1 ? "" : "s", facts->interval.empty() ? "none" : facts->interval,
               facts->restart_dir.empty() ? "its own" : facts->restart_dir);
  become_step_worker(*facts, config, options.config, {control.get(), tasks.get()}, options.part_of != 0);
  StepAgent(*facts, config, problem, std::move(control), std::move(tasks)).run();
  return 0;
}

int run_job_end(const Options& options, bool stale) {
  std::string problem;
  const Config config = load_config(options.config, problem);
  start_logging(config, stale ? "-" : options.node);
  if (!problem.empty()) spdlog::error("{}", problem);
  if (!stale) end_job(config, options.node, options.job, options.uid, options.restarts);
  clean_stale(config);
  return 0;
}

int check_config(const Options& options) {
  Config::load(options.config, true);
  std::printf("%s: correct\n", options.config.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("The slurm-icp step agent. slurmstepd and slurmd start it by themselves (see spank_icp(8)).",
               "icpstepd");
  app.set_version_flag("--version", std::string("icpstepd ") + ICP_VERSION);
  app.require_subcommand(1);
  Options options;
  const auto add = [&](const char* name, const char* help) {
    CLI::App* const command = app.add_subcommand(name, help);
    command->add_option("--config", options.config, "icp.yaml")->capture_default_str();
    return command;
  };
  CLI::App* const step = add("step", "checkpoint one step (sockets of slurmstepd on descriptors 3 and 4)");
  step->add_option("--part-of", options.part_of, "the agent that started this one, for one of several capsules");
  CLI::App* const epilog = add("epilog", "the end of a job on a node");
  epilog->add_option("--job", options.job)->required();
  epilog->add_option("--uid", options.uid)->required();
  epilog->add_option("--node", options.node)->required();
  epilog->add_option("--restarts", options.restarts);
  const CLI::App* const stale = add("clean-stale", "what jobs left that ended unseen");
  const CLI::App* const check = add("check-config", "say whether icp.yaml is correct");
  CLI11_PARSE(app, argc, argv);
  try {
    if (step->parsed()) return run_step(options);
    if (check->parsed()) return check_config(options);
    return run_job_end(options, stale->parsed());
  } catch (const std::exception& error) {
    spdlog::error("{}", error.what());
    std::fprintf(stderr, "icpstepd: %s\n", error.what());
    return 1;
  }
}
