// SPDX-License-Identifier: GPL-2.0-or-later
// The checks of icp doctor, a file for each group. None of them changes anything, but for a file that
// probe_directory() makes and removes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "coordinator/config.h"
#include "coordinator/icp/doctor/diagnosis.h"
#include "coordinator/icp/doctor/host.h"
#include "coordinator/icp/doctor/slurm_files.h"
#include "engine/base/identity.h"

namespace icp::doctor {

// kernel_checks.cc: what checkpoint and restart need of Linux, with or without Slurm.
void check_kernel(const Host& host, Diagnosis& diagnosis);

// system_checks.cc: cgroups and systemd, on a node.
void check_system(const Host& host, const Config& config, Diagnosis& diagnosis);

// install_checks.cc: icp.yaml (defaults when it is not usable); icpstepd and what lies beside it.
Config check_config(const Host& host, const std::string& path, Diagnosis& diagnosis);
void check_installation(const Host& host, const std::string& icpstepd, Diagnosis& diagnosis);

// slurm_checks.cc: slurm.conf and plugstack.conf. `config` is what icp.yaml was read from; of a machine that has the
// plugin, the path of icpstepd that its line names.
struct SlurmChecks {
  std::optional<SlurmConf> conf;
  std::string config = "/etc/slurm-icp/icp.yaml";
  bool node = true;  // runs slurmd: else only what a submitting machine needs is looked at
};
std::string check_slurm(const Host& host, const SlurmChecks& what, Diagnosis& diagnosis);
void check_coordinator_machine(const Host& host, const std::optional<SlurmConf>& conf, const Config& config,
                               Diagnosis& diagnosis);

// service_checks.cc: munged and icpctld, where a coordinator is configured.
void check_services(const Host& host, const Config& config, Diagnosis& diagnosis);

// directory_checks.cc: where images go.
struct DirectoryFacts {
  std::string path;
  std::string error;             // why nothing is known: it does not exist, is no directory ...
  std::string denied;            // why the user cannot make a file in it
  std::string type;              // of the file system: "ext4", "nfs", or its number
  bool volatile_memory = false;  // tmpfs: gone with the machine
  bool others = false;           // a file made in it does not belong to who made it
  bool locks = true;             // flock(2) excludes
  bool direct = true;            // takes O_DIRECT
  uint64_t free_bytes = 0, total_bytes = 0;
};
// As `user`, with whose rights an agent writes images. Without `write` it is only looked at.
DirectoryFacts probe_directory(const std::string& path, const Identity& user, bool write);
void check_directory(const DirectoryFacts& facts, Diagnosis& diagnosis);

// try_run.cc: a small program of `user` through checkpoint, SIGKILL and restart, in a directory of its own below
// `directory`. `icp` is the program to do it with.
void try_run(const std::string& icp, const std::string& directory, const Identity& user, Diagnosis& diagnosis);
// That small program: writes `steps` lines into `file`, and then what came out. Returns its exit code.
int trial_program(const std::string& file, uint32_t steps);

}  // namespace icp::doctor
