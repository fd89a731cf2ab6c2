// SPDX-License-Identifier: GPL-2.0-or-later
// The shape of the command icp: each group of commands is a file that adds itself to the command line. docs/man/icp.1
// is the reference.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "engine/base/error.h"

namespace icp {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailed = 1,        // refused or failed; also: check found something, verify found damage
  kExitUsage = 2,         // wrong command line
  kExitDamaged = 3,       // an image is damaged or does not fit this machine
  kExitDenied = 4,        // no permission
  kExitNotStarted = 125,  // run, restart: icp failed before the program ran; 126 and 127 as in the shell
};

ExitCode exit_code(const Error& error);

struct Cli {
  CLI::App app;
  int verbosity = 0;
  int json_fd = -1;                  // see answer.h
  std::vector<std::string> command;  // what stood after "--"
  std::function<int()> chosen;       // the command to carry out, set by parsing; its value is the exit code
};

void add_run_command(Cli& cli);          // run_command.cc
void add_checkpoint_commands(Cli& cli);  // checkpoint_commands.cc: checkpoint, watch, check
void add_restart_command(Cli& cli);      // restart_command.cc
void add_image_commands(Cli& cli);       // image_commands.cc: list, show, verify
void add_job_commands(Cli& cli);         // job_commands.cc: of Slurm jobs, through icpctld
void add_drain_command(Cli& cli);        // drain_command.cc: through icpctld
void add_report_command(Cli& cli);       // report_command.cc
void add_chain_commands(Cli& cli);       // chain_commands.cc: compact, prune
void add_diff_command(Cli& cli);         // diff_command.cc
void add_doctor_command(Cli& cli);       // doctor/doctor_command.cc: doctor, setup

// For an option that takes a number of at least 1.
std::string check_positive(const std::string& text);

// parse_duration() with kUsage thrown, which begins with the option.
std::chrono::milliseconds interval_from(const std::string& text, const char* option = "--interval");

}  // namespace icp
