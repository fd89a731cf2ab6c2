// SPDX-License-Identifier: GPL-2.0-or-later
// icp checkpoint, watch and check: on a tree that runs already.
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "coordinator/duration.h"
#include "coordinator/icp/answer.h"
#include "coordinator/icp/cli.h"
#include "coordinator/icp/event_loop.h"
#include "coordinator/icp/format.h"
#include "coordinator/icp/image_json.h"
#include "coordinator/icp/lost_children.h"
#include "coordinator/icp/program.h"
#include "coordinator/icp/users.h"
#include "coordinator/icp/versions.h"
#include "engine/base/printable.h"
#include "engine/base/procfs.h"

namespace icp {

namespace {

struct TreeOptions {
  VersionOptions versions;
  int pid = 0;
  std::string interval;
  uint64_t count = 0;  // 0: without end
  bool kill = false, json = false;

  void add_pid(CLI::App& app) {
    app.add_option("--pid", pid, "Root of the tree")->required()->check(check_positive)->type_name("PID");
  }
};

// icp would stop itself and never go on.
void refuse_own_tree(pid_t root) {
  for (pid_t pid = getpid(); pid > 0; pid = ProcStat::read(pid).ppid) {
    if (pid != root) continue;
    throw Error(ErrorKind::kUsage, fmt::format("icp runs in the tree of process {} itself", root), 0,
                "start icp from somewhere else, or name a process further down");
  }
}

// A daemon has left the tree, and nobody can tell for sure whose it was.
void name_lost_children(pid_t root) {
  constexpr size_t kMostNamed = 5;
  const std::vector<pid_t> lost = lost_children(root);
  if (lost.empty()) return;
  std::string names;
  for (size_t i = 0; i < std::min(lost.size(), kMostNamed); ++i) {
    std::string comm = "?";
    try {
      comm = ProcStat::read(lost[i]).comm;
    } catch (const Error&) {
      // It has ended meanwhile.
    }
    names += fmt::format("{}{} ({})", i == 0 ? "" : ", ", lost[i], printable(comm));
  }
  if (lost.size() > kMostNamed) names += ", ...";
  print_error(
      fmt::format("not in the version, since {} left the tree when {} parent{} ended, if process {} started {}: {}; "
                  "under icp run and "
                  "Slurm such processes are found",
                  lost.size() == 1 ? "it" : "they", lost.size() == 1 ? "its" : "their", lost.size() == 1 ? "" : "s",
                  root, lost.size() == 1 ? "it" : "them", names));
}

// Whose processes they are; kPermission when the caller may not look into them.
Identity owner_of_tree(pid_t root) {
  const Identity identity = Identity::of_process(root);
  if (geteuid() == 0 || identity.uid == geteuid()) return identity;
  throw Error(ErrorKind::kPermission, fmt::format("process {} is user {}'s, not yours", root, user_name(identity.uid)),
              EPERM, "run icp as that user, or with sudo");
}

SessionConfig config_of_tree(const TreeOptions& options) {
  const ProcessHandle exists(options.pid);
  refuse_own_tree(options.pid);
  const Identity identity = owner_of_tree(options.pid);
  work_as(identity);
  name_lost_children(options.pid);
  std::string command = read_proc(options.pid, "cmdline");
  for (char& c : command)
    if (c == '\0') c = ' ';
  command.erase(command.find_last_not_of(' ') + 1);
  return session_config(options.versions, identity, command);
}

int exit_code_of(const Versions& versions) { return versions.failure() ? exit_code(*versions.failure()) : kExitFailed; }

int checkpoint(const TreeOptions& options, const Cli& cli) {
  Reporter reporter(cli.verbosity);
  SessionConfig config = config_of_tree(options);
  config.keep_tracking = true;  // the next call may go on from this version
  Versions versions(std::move(config), open_root(options.pid), reporter, options.versions.keep);
  const EventLoop undisturbed({SIGTERM, SIGINT, SIGHUP});  // a version is taken whole or, on an error, not at all
  const auto result = versions.take(options.kill);
  if (!result && !ProcessHandle(options.pid).running())
    throw_error(ErrorKind::kGone, "process {} ended before a version was taken", options.pid);
  if (options.json && !result && versions.failure()) print_json(error_json(*versions.failure()));
  if (!result) return exit_code_of(versions);
  if (options.json) print_json(result_json(*result));
  return kExitOk;
}

int watch(const TreeOptions& options, const Cli& cli) {
  const auto interval = interval_from(options.interval);
  Reporter reporter(cli.verbosity);
  Versions versions(config_of_tree(options), open_root(options.pid), reporter, options.versions.keep);
  const ProcessHandle process(options.pid);
  EventLoop loop({SIGUSR1, SIGTERM, SIGINT, SIGHUP});
  loop.start_timer(interval);
  bool taken = versions.take().has_value();
  for (uint64_t tries = 1; options.count == 0 || tries < options.count;) {
    const Event event = loop.wait(process.fd());
    if (event.kind == Event::kReady) {
      reporter.note(fmt::format("process {} has ended", options.pid));
      return kExitOk;
    }
    if (event.kind == Event::kSignal && event.signal != SIGUSR1) break;
    taken = versions.take().has_value();
    ++tries;
  }
  return taken || !process.running() ? kExitOk : exit_code_of(versions);
}

int check(const TreeOptions& options) {
  const ProcessHandle exists(options.pid);
  work_as(owner_of_tree(options.pid));
  const Findings findings = check_tree({options.pid}, outer_streams_of(options.pid, 0));
  if (options.json) {
    print_json(findings_json(findings));
  } else {
    for (const Finding& finding : findings) fmt::print("{}\n", printable(to_sentence(finding)));
    if (findings.empty()) fmt::print("process {}: nothing stops a checkpoint\n", options.pid);
  }
  return findings.empty() ? kExitOk : kExitFailed;
}

}  // namespace

void add_checkpoint_commands(Cli& cli) {
  auto options = std::make_shared<TreeOptions>();
  CLI::App* app = cli.app.add_subcommand("checkpoint", "Take one version of a running tree");
  options->versions.add_dir(*app, "Directory of the versions; made if missing");
  options->add_pid(*app);
  app->add_flag("--kill", options->kill, "Kill the tree once the version is committed");
  app->add_flag("--json", options->json, "Print the version as JSON");
  options->versions.add_to(*app);
  options->versions.add_chain(*app);
  app->callback([&cli, options] { cli.chosen = [&cli, options] { return checkpoint(*options, cli); }; });

  options = std::make_shared<TreeOptions>();
  app = cli.app.add_subcommand("watch", "Take versions of a running tree");
  options->versions.add_dir(*app, "Directory of the versions; made if missing");
  app->add_option("--interval", options->interval, "Time between versions")->required()->type_name("T");
  options->add_pid(*app);
  app->add_option("--count", options->count, "End after N versions, the first of them now")
      ->check(check_positive)
      ->type_name("N");
  options->versions.add_to(*app);
  options->versions.add_chain(*app);
  app->footer("SIGUSR1 takes a version now. SIGINT and SIGTERM end icp; the tree runs on.");
  app->callback([&cli, options] { cli.chosen = [&cli, options] { return watch(*options, cli); }; });

  options = std::make_shared<TreeOptions>();
  app = cli.app.add_subcommand("check", "Report what would prevent a checkpoint of a running process tree");
  options->add_pid(*app);
  app->add_flag("--json", options->json, "Print the list as JSON");
  app->footer("Stops nothing. Exits with 0 if nothing is in the way, 1 if something is.");
  app->callback([&cli, options] { cli.chosen = [options] { return check(*options); }; });
}

}  // namespace icp
