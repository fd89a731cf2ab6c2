// SPDX-License-Identifier: GPL-2.0-or-later
// icp run: starts a program and takes versions of it.
#include <fmt/ranges.h>
#include <sys/wait.h>

#include <memory>

#include "coordinator/duration.h"
#include "coordinator/icp/answer.h"
#include "coordinator/icp/cli.h"
#include "coordinator/icp/event_loop.h"
#include "coordinator/icp/program.h"
#include "coordinator/icp/users.h"
#include "coordinator/icp/versions.h"

namespace icp {

namespace {

struct RunOptions {
  VersionOptions versions;
  std::string interval, user;
};

std::string joined(const std::vector<std::string>& words) { return fmt::format("{}", fmt::join(words, " ")); }

// Until the program ends. Its wait(2) status.
int take_versions(EventLoop& loop, Program& program, Versions& versions) {
  for (;;) {
    const Event event = loop.wait(program.event_fd());
    if (event.kind == Event::kReady) return program.take_status();
    if (event.kind == Event::kTimer || event.signal == SIGUSR1) {
      versions.take();
    } else if (!event.from_kernel) {
      // A key on the terminal has reached the program already: it is in our process group.
      program.signal(event.signal);
    }
  }
}

int run(const RunOptions& options, const Cli& cli, std::chrono::milliseconds interval) {
  const std::optional<Identity> user =
      options.user.empty() ? std::nullopt : std::optional(identity_to_work_as(options.user));
  Reporter reporter(cli.verbosity);
  SessionConfig config = session_config(options.versions, user.value_or(caller_identity()), joined(cli.command));
  EventLoop loop({SIGUSR1, SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR2});
  Program program = Program::start(cli.command, loop.old_mask(), user);
  work_as(config.identity);  // after the program, which gets all that its user has
  reporter.note(fmt::format("process {}, a version every {} into {}", program.pid(), format_duration(interval),
                            config.image_path));
  config.more_processes = [&program] { return program.orphans(); };
  Versions versions(std::move(config), open_root(program.pid()), reporter, options.versions.keep);
  loop.start_timer(interval);
  return take_versions(loop, program, versions);
}

int run_and_pass_on(const RunOptions& options, const Cli& cli) {
  if (cli.command.empty())
    throw Error(ErrorKind::kUsage, "no program to run", 0,
                "put it after \"--\": icp run --dir D --interval 10m -- CMD");
  const auto interval = interval_from(options.interval);
  int status = 0;
  try {
    status = run(options, cli, interval);
  } catch (const NotExecuted& error) {
    print_error(sentence(error));
    return error.exit_code();
  } catch (const Error& error) {
    print_error(sentence(error));
    return error.kind() == ErrorKind::kUsage ? kExitUsage : kExitNotStarted;
  }
  exit_as(status);
}

}  // namespace

void add_run_command(Cli& cli) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* app =
      cli.app.add_subcommand("run", "Start a program and take versions of it: icp run OPTIONS -- CMD [ARGS]");
  options->versions.add_dir(*app, "Directory of the versions; made if missing");
  app->add_option("--interval", options->interval, "Time between versions")->required()->type_name("T");
  app->add_option("--user", options->user, "Run the program as this user")->type_name("NAME");
  options->versions.add_to(*app);
  options->versions.add_chain(*app);
  app->footer("SIGUSR1 takes a version now. Exits as the program did; 125 to 127 if it could not be started.");
  app->callback([&cli, options] { cli.chosen = [&cli, options] { return run_and_pass_on(*options, cli); }; });
}

}  // namespace icp
