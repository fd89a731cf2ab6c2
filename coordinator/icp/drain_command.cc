// SPDX-License-Identifier: GPL-2.0-or-later
// icp drain: no new jobs on some nodes, and those that can go on elsewhere do so now.
#include <fmt/format.h>

#include <future>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "coordinator/icp/answer.h"
#include "coordinator/icp/cli.h"
#include "coordinator/icp/job_operation.h"
#include "coordinator/icp/report.h"
#include "coordinator/protocol/slurm_errors.h"

namespace icp {
namespace {

constexpr size_t kAtOnce = 8;  // jobs; icpctld limits who writes by itself
constexpr std::chrono::milliseconds kAgain{500};
constexpr int kTries = 1200;  // a version at the interval may be under way for as long

struct DrainOptions {
  JobOptions job;
  std::string nodes, reason;
};

struct Outcome {
  uint32_t job = 0;
  bool requeued = false;  // else it stays on its node to its end
  net::Reply reply;
};

// A version, after which the job is requeued; of one that cannot be, a version.
Outcome vacate(const JobClient& client, uint32_t job, const std::string& reason) {
  Outcome outcome{job, true, {}};
  net::Request request;
  request.set_job(job);
  request.set_wait(true);
  request.set_reason("drained: " + reason);
  for (int i = 0; i < kTries; i++) {
    request.set_operation(outcome.requeued ? net::OP_REQUEUE : net::OP_CREATE);
    outcome.reply = client.ask(request, kLongestWait);
    if (outcome.reply.code() == net::kNotSupported && outcome.requeued) {
      outcome.requeued = false;
      continue;
    }
    if (outcome.reply.code() != net::kInProgress) break;
    std::this_thread::sleep_for(kAgain);
  }
  return outcome;
}

std::string text_of(const Outcome& outcome, const std::string& image) {
  if (outcome.reply.code() == net::kAlreadyDone) return fmt::format("job {}: has ended", outcome.job);
  if (outcome.reply.code() != 0) return fmt::format("job {}: no version: {}", outcome.job, refusal(outcome.reply));
  if (outcome.requeued) return fmt::format("job {}: a version was taken, and it is requeued", outcome.job);
  return fmt::format(
      "job {}: a version was taken; it cannot be requeued and runs to its end (srun --restart-dir={} ... "
      "goes on from the version)",
      outcome.job, image);
}

bool is_well(const Outcome& outcome) { return outcome.reply.code() == 0 || outcome.reply.code() == net::kAlreadyDone; }

nlohmann::json json_of(const Outcome& outcome) {
  return {{"job", outcome.job},
          {"requeued", outcome.requeued && outcome.reply.code() == 0},
          {"code", outcome.reply.code()},
          {"error", outcome.reply.code() == 0 ? "" : refusal(outcome.reply)}};
}

int drain(const DrainOptions& options, int verbosity) {
  const JobClient client(options.job.config);
  net::Request request;
  request.set_operation(net::OP_DRAIN);
  request.set_nodes(options.nodes);
  request.set_reason(options.reason);
  const net::Reply drained = client.ask(request);
  check_reply(drained, "drain " + options.nodes);
  std::map<uint32_t, std::string> images;  // of each job there, one of its steps'
  for (const net::StepStatus& step : drained.steps()) images[step.job()] = step.image();
  const Reporter reporter(verbosity);
  if (!options.job.json) reporter.note(fmt::format("{} drained", options.nodes));
  nlohmann::json all = nlohmann::json::array();
  int result = kExitOk;
  for (auto next = images.begin(); next != images.end();) {
    std::vector<std::future<Outcome>> some;
    for (; next != images.end() && some.size() < kAtOnce; ++next)
      some.push_back(std::async(
          std::launch::async, [&client, job = next->first, &options] { return vacate(client, job, options.reason); }));
    for (auto& one : some) {
      const Outcome outcome = one.get();
      const std::string text = printable(text_of(outcome, images[outcome.job]));
      all.push_back(json_of(outcome));
      if (!is_well(outcome)) result = kExitFailed;
      if (!options.job.json && is_well(outcome)) fmt::print("{}\n", text);
      if (!options.job.json && !is_well(outcome)) print_error(text);
    }
  }
  if (options.job.json) print_json({{"nodes", options.nodes}, {"jobs", all}});
  return result;
}

}  // namespace

void add_drain_command(Cli& cli) {
  auto options = std::make_shared<DrainOptions>();
  CLI::App* const app = cli.app.add_subcommand(
      "drain", "Drain nodes: checkpoint and requeue the batch jobs on them, which go on elsewhere");
  app->add_option("NODES", options->nodes, "Nodes as Slurm lists them: n1 or n[1-4,7]")->type_name("")->required();
  app->add_option("--reason", options->reason, "Why, as in scontrol update: for sinfo -R and the jobs' history")
      ->type_name("TEXT")
      ->required();
  options->job.add_json(*app);
  options->job.add_config(*app);
  app->callback([&cli, options] { cli.chosen = [&cli, options] { return drain(*options, cli.verbosity); }; });
}

}  // namespace icp
