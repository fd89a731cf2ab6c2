// SPDX-License-Identifier: GPL-2.0-or-later
// The line that loads our plugin, written into Slurm's configuration and taken out of it again.
#pragma once

#include <optional>
#include <string>

#include "coordinator/icp/doctor/host.h"
#include "coordinator/icp/doctor/slurm_files.h"

namespace icp::doctor {

struct SetupOptions {
  std::optional<SlurmConf> conf;
  std::string plugin = "spank_icp.so";  // as in plugstack.conf
  std::string config = "/etc/slurm-icp/icp.yaml";
  std::string icpstepd;  // empty: where it was installed
  bool required = false;
};

// Writes plugstack.conf.d/icp.conf beside plugstack.conf, and makes plugstack.conf include it where it does not. Each
// file is there whole, or as it was before: srun and slurmd read them at any time. Returns what was changed, one
// sentence each; nothing when all was there. Throws Error, with nothing half done.
std::vector<std::string> enable_plugin(const Host& host, const SetupOptions& options);
// The reverse. Lines that somebody else wrote are named and stay.
std::vector<std::string> disable_plugin(const Host& host, const std::optional<SlurmConf>& conf);

}  // namespace icp::doctor
