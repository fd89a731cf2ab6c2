// SPDX-License-Identifier: GPL-2.0-or-later
// icp: checkpoints and restarts process trees, with or without Slurm.
#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <span>

#include "coordinator/duration.h"
#include "coordinator/icp/answer.h"
#include "coordinator/icp/cli.h"
#include "coordinator/icp/format.h"
#include "coordinator/icp/image_json.h"
#include "coordinator/icp/report.h"
#include "coordinator/icp/scontrol_command.h"

namespace icp {

ExitCode exit_code(const Error& error) {
  switch (error.kind()) {
    case ErrorKind::kUsage:
      return kExitUsage;
    case ErrorKind::kImage:
      return kExitDamaged;
    case ErrorKind::kPermission:
      return kExitDenied;
    case ErrorKind::kSystem:
      return error.error_number() == EACCES || error.error_number() == EPERM ? kExitDenied : kExitFailed;
    case ErrorKind::kRefused:
    case ErrorKind::kBusy:
    case ErrorKind::kGone:
    case ErrorKind::kInternal:
      break;
  }
  return kExitFailed;
}

std::chrono::milliseconds interval_from(const std::string& text, const char* option) {
  std::string why;
  if (const auto value = parse_duration(text, why)) return *value;
  throw Error(ErrorKind::kUsage, fmt::format("{}: {}", option, why));
}

std::string check_positive(const std::string& text) {
  uint32_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool good = code == std::errc() && end == text.data() + text.size() && value > 0 && value <= INT32_MAX;
  return good ? "" : "\"" + text + "\" is not a number from 1 to 2147483647";
}

namespace {

void set_up(Cli& cli) {
  cli.app.name("icp");
  cli.app.description("Incremental checkpoint and restart of process trees, with or without Slurm.");
  cli.app.footer("Times: " + std::string(kDurationGrammar) +
                 ".\nExit codes: 0 done, 1 failed or found something, 2 wrong command line, 3 damaged image, "
                 "4 no permission; run and restart pass on the program's own.\nSee icp(1).");
  cli.app.set_version_flag("--version", "slurm-icp " ICP_VERSION);
  cli.app.add_flag("-v,--verbose", cli.verbosity, "Report what is done; twice: debugging messages");
  cli.app
      .add_option("--json-fd", cli.json_fd,
                  "For programs: with --json, write errors and warnings into descriptor N as JSON, too")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  cli.app.require_subcommand(1);
  cli.app.fallthrough();
  cli.app.get_formatter()->column_width(26);
  add_run_command(cli);
  add_checkpoint_commands(cli);
  add_restart_command(cli);
  add_image_commands(cli);
  add_job_commands(cli);
  add_drain_command(cli);
  add_report_command(cli);
  add_chain_commands(cli);
  add_diff_command(cli);
  add_doctor_command(cli);
}

// The first line of what CLI11 says, and where to read more.
int wrong_command_line(const Cli& cli, const CLI::ParseError& error) {
  std::string text = error.what();
  text = text.substr(0, text.find('\n'));
  std::string command = "icp";
  if (const auto words = cli.app.remaining(); cli.app.get_subcommands().empty() && !words.empty())
    text = fmt::format("there is no {} {}", words.front().starts_with('-') ? "option" : "command", words.front());
  for (const CLI::App* sub : cli.app.get_subcommands()) command += " " + sub->get_name();
  print_error(fmt::format("{}; see {} --help", printable(text), command));
  return kExitUsage;
}

// What stands after "--" is the program's own, down to a further "--": taken away before CLI11 sees it.
int parse(Cli& cli, std::span<char*> arguments) {
  const auto find = [&](const char* word) {
    return std::find_if(arguments.begin(), arguments.end(), [&](const char* text) { return !std::strcmp(text, word); });
  };
  auto dashes = find("--");
  if (find("run") > dashes) dashes = arguments.end();
  if (dashes != arguments.end()) cli.command.assign(dashes + 1, arguments.end());
  try {
    cli.app.parse(static_cast<int>(dashes - arguments.begin()), arguments.data());
  } catch (const CLI::CallForVersion& version) {
    // Of a command that knows no --version it is not a question about icp.
    if (cli.app.get_subcommands().empty()) return cli.app.exit(version);
    return wrong_command_line(cli, CLI::ExtrasError({"--version"}));
  } catch (const CLI::Success& help) {
    return cli.app.exit(help);
  } catch (const CLI::ParseError& error) {
    return wrong_command_line(cli, error);
  }
  return -1;
}

bool wants_json(const Cli& cli) {
  for (const CLI::App* sub : cli.app.get_subcommands()) {
    const CLI::Option* json = sub->get_option_no_throw("--json");
    if (json != nullptr && json->count() > 0) return true;
  }
  return false;
}

int report_failure(const Cli& cli, const Error& error) {
  if (!answers_a_program()) print_error(sentence(error));
  try {
    if (wants_json(cli)) print_json(error_json(error));
  } catch (const Error&) {
    // The program has closed its descriptor, and there is nobody else to tell.
  }
  return exit_code(error);
}

int carry_out(const Cli& cli) {
  try {
    if (cli.json_fd >= 0 && !wants_json(cli))
      throw_error(ErrorKind::kUsage, "--json-fd goes with the --json of a command that has it");
    if (cli.json_fd >= 0) answer_into(cli.json_fd);
    return cli.chosen();
  } catch (const Error& error) {
    return report_failure(cli, error);
  } catch (const std::exception& error) {
    return report_failure(cli, Error(ErrorKind::kSystem, error.what()));
  }
}

// What could not be written is a failure: a full disk must not pass for an empty list.
int flushed(int code) {
  if (std::fflush(stdout) == 0 && std::cout.flush()) return code;
  if (code == kExitOk) print_error("cannot write to standard output: " + errno_text(errno));
  return code == kExitOk ? kExitFailed : code;
}

}  // namespace
}  // namespace icp

int main(int argc, char** argv) {
  if (argc > 1 && !std::strcmp(argv[1], "scontrol")) return icp::flushed(icp::run_scontrol({argv + 2, argv + argc}));
  icp::Cli cli;
  icp::set_up(cli);
  if (const int code = icp::parse(cli, std::span(argv, static_cast<size_t>(argc))); code >= 0)
    return icp::flushed(code);
  icp::set_up_logging(cli.verbosity);
  // A closed stderr must not end a checkpoint half-way, nor leave a program without one.
  std::signal(SIGPIPE, SIG_IGN);
  return icp::flushed(icp::carry_out(cli));
}
