// SPDX-License-Identifier: GPL-2.0-or-later
// icp create, vacate, requeue, move, enable, disable, jobs, status, history and ipc: of Slurm jobs, through icpctld.
// icp restart JOB is in restart_command.cc.
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <memory>
#include <nlohmann/json.hpp>

#include "coordinator/icp/answer.h"
#include "coordinator/icp/event_loop.h"
#include "coordinator/icp/format.h"
#include "coordinator/icp/history_text.h"
#include "coordinator/icp/job_operation.h"
#include "coordinator/icp/report.h"
#include "coordinator/icp/step_json.h"
#include "coordinator/icp/step_text.h"
#include "engine/base/times.h"

namespace icp {

namespace {

constexpr std::chrono::seconds kRedraw{1};

enum class View { kJobs, kStatus, kHistory, kIpc };

struct ViewOptions {
  JobOptions job;
  uint32_t versions = 20;
  bool watch = false;
};

net::Request request_for(View view, const ViewOptions& options) {
  std::optional<JobId> id;
  if (!options.job.job.empty()) id = job_from(options.job.job);
  const net::Operation operation = view == View::kIpc       ? net::OP_IPC
                                   : view == View::kHistory ? net::OP_HISTORY
                                                            : net::OP_STATUS;
  net::Request request = request_of(operation, id);
  request.set_versions(view == View::kJobs ? 1 : options.versions);
  return request;
}

std::string text_of(View view, const net::Reply& reply) {
  if (view == View::kJobs) return steps_table(reply, now_unix_ms());
  if (view == View::kIpc) return ipc_table(reply);
  if (view == View::kHistory) return history_text(reply, now_unix_ms());
  return reply.steps_size() == 0 ? "no step that asked for checkpoints\n" : steps_text(reply, now_unix_ms());
}

nlohmann::json json_of(View view, const net::Reply& reply) {
  if (view == View::kIpc) return {{"ipc", ipc_json(reply)}};
  if (view == View::kHistory) return {{"runs", history_json(reply)}};
  return {{"steps", steps_json(reply)}};
}

std::string name_of(View view, const ViewOptions& options) {
  const char* name = view == View::kJobs      ? "jobs"
                     : view == View::kIpc     ? "ipc"
                     : view == View::kHistory ? "history"
                                              : "status";
  return options.job.job.empty() ? name : fmt::format("{} {}", name, options.job.job);
}

void show(View view, const ViewOptions& options, const net::Request& request, const JobClient& client) {
  const net::Reply reply = client.ask(request);
  check_reply(reply, name_of(view, options));
  if (options.watch && options.job.json) {  // one document a line
    fmt::print("{}\n", json_of(view, reply).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  } else if (options.job.json) {
    print_json(json_of(view, reply));
  } else {
    const bool clear = options.watch && isatty(STDOUT_FILENO) == 1;
    fmt::print("{}{}", clear ? "\033[H\033[2J" : "", text_of(view, reply));
    if (options.watch && !clear) fmt::print("\n");
  }
  std::fflush(stdout);
}

// Until SIGINT or SIGTERM. icpctld may go and come back meanwhile; a wrong job ends it at once.
int watch(View view, const ViewOptions& options, const net::Request& request, const JobClient& client) {
  EventLoop loop({SIGINT, SIGTERM, SIGHUP});
  show(view, options, request, client);
  while (loop.wait(-1, kRedraw).kind != Event::kSignal) {
    if (std::ferror(stdout) != 0) return kExitFailed;  // whoever read this has gone
    try {
      show(view, options, request, client);
    } catch (const Error& error) {
      print_error(sentence(error));
    }
  }
  return kExitOk;
}

int look(View view, const ViewOptions& options) {
  const net::Request request = request_for(view, options);
  const JobClient client(options.job.config);
  if (options.watch) return watch(view, options, request, client);
  show(view, options, request, client);
  return kExitOk;
}

void add_operation(Cli& cli, const char* name, net::Operation operation, const char* help, bool takes_version) {
  auto options = std::make_shared<JobOptions>();
  CLI::App* app = cli.app.add_subcommand(name, help);
  if (operation == net::OP_MOVE)
    app->add_option("--nodes", options->nodes, "Run on these, as Slurm lists them (default: on others than now)")
        ->type_name("LIST");
  options->add_job(*app)->required();
  if (takes_version) {
    options->add_image_dir(*app);
    app->add_option("--max-wait", options->max_wait, "Give up after this time (default: icp.yaml's timeouts)")
        ->type_name("T");
    app->add_flag("--wait", options->wait, "End when the version is there, or has failed");
  }
  options->add_json(*app);
  options->add_config(*app);
  app->callback([&cli, options, operation, name] {
    cli.chosen = [&cli, options, operation, name] { return carry_out(operation, name, *options, cli); };
  });
}

std::shared_ptr<ViewOptions> add_view(Cli& cli, CLI::App& app, View view) {
  auto options = std::make_shared<ViewOptions>();
  if (view != View::kJobs) options->job.add_job(app)->required(view == View::kHistory);
  if (view == View::kStatus)
    app.add_option("--versions", options->versions, "Show at most so many versions (default: 20)")
        ->check(check_positive)
        ->type_name("N");
  app.add_flag("--watch", options->watch, "Refresh every second until interrupted");
  options->job.add_json(app);
  options->job.add_config(app);
  app.callback([&cli, options, view] { cli.chosen = [options, view] { return look(view, *options); }; });
  return options;
}

}  // namespace

void add_job_commands(Cli& cli) {
  add_operation(cli, "create", net::OP_CREATE, "Take a version of a Slurm job, which goes on", true);
  add_operation(cli, "vacate", net::OP_VACATE, "Take a version of a Slurm job, then end it", true);
  add_operation(cli, "requeue", net::OP_REQUEUE, "Take a version of a batch job, then requeue it", true);
  add_operation(cli, "move", net::OP_MOVE, "Take a version of a batch job, then requeue it to run on other nodes",
                true);
  add_operation(cli, "disable", net::OP_DISABLE, "Forbid further versions of a Slurm job", false);
  add_operation(cli, "enable", net::OP_ENABLE, "Allow them again", false);
  add_view(cli, *cli.app.add_subcommand("jobs", "List the steps that icpctld knows"), View::kJobs);
  add_view(cli, *cli.app.add_subcommand("status", "Show versions, next one due, progress of a Slurm job"),
           View::kStatus);
  add_view(cli, *cli.app.add_subcommand("history", "Show the runs of a Slurm job: why each ended, and what it cost"),
           View::kHistory);
  add_view(cli, *cli.app.add_subcommand("ipc", "List the System V objects of Slurm jobs"), View::kIpc);
}

}  // namespace icp
