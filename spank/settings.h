// SPDX-License-Identifier: GPL-2.0-or-later
// What the administrator told the plugin: arguments in plugstack.conf, and two keys of icp.yaml.
#pragma once

#include <string>
#include <vector>

namespace icp::spank {

enum class IpcChoice {
  kPrivate,  // an IPC namespace for each job and node
  kHost,     // the machine's own; objects are told apart by who made them
  kOff,      // System V objects are left alone
};

struct Settings {
  std::string config = "/etc/slurm-icp/icp.yaml";
  std::string icpstepd = ICP_LIBEXEC_DIR "/icpstepd";
  IpcChoice ipc = IpcChoice::kPrivate;
  std::string run_dir = "/run/slurm-icp";
  bool on_demand = false;  // an agent for every step

  // Reads the plugin's arguments (key=value) and then the configuration file. Never throws; whatever is wrong is put
  // in `complaints`, one sentence each, and the default holds.
  static Settings read(int argc, char** argv, std::vector<std::string>& complaints);
};

}  // namespace icp::spank
