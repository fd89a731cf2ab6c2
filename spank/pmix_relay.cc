// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/pmix_relay.h"

#include <string>
#include <string_view>

#include "spank/start_program.h"

namespace icp::spank {
namespace {

// The same server for clients of several releases of PMIx (Slurm's mpi_pmix calls PMIx_server_setup_fork).
constexpr const char* kServerVariables[] = {"PMIX_SERVER_URI41", "PMIX_SERVER_URI4", "PMIX_SERVER_URI3",
                                            "PMIX_SERVER_URI21", "PMIX_SERVER_URI2", "PMIX_SERVER_URI"};
constexpr std::string_view kScheme = "tcp4://";

}  // namespace

void describe_pmix(spank_t handle, protocol::Packet& ready) {
  for (const char* const name : kServerVariables) {
    const std::string uri = job_env(handle, name);
    if (uri.find(kScheme) == std::string::npos) continue;
    ready.set("pmix_uri", uri).set("pmix_name_space", job_env(handle, "PMIX_NAMESPACE"));
    return;
  }
}

void use_pmix_relay(spank_t handle, protocol::Packet& answer) {
  const std::string address = answer.get("pmix"), relay = answer.get("relay");
  if (!relay.empty() && answer.fds.size() == 2) {
    const char* const argv[] = {relay.c_str(), "pmix", "3", "4", nullptr};
    const char* const envp[] = {"PATH=/usr/bin:/bin", nullptr};
    start_program(argv, envp, answer.fds[0], answer.fds[1]);
  }
  answer.close_fds();
  if (address.empty()) return;
  for (const char* const name : kServerVariables) {
    const std::string uri = job_env(handle, name);
    const size_t scheme = uri.find(kScheme);
    if (scheme == std::string::npos) continue;
    spank_setenv(handle, name, (uri.substr(0, scheme + kScheme.size()) + address).c_str(), 1);
  }
  // In memory, rather than in files below slurmd's spool directory that end with the step.
  if (job_env(handle, "PMIX_MCA_gds").empty()) spank_setenv(handle, "PMIX_MCA_gds", "hash", 1);
}

}  // namespace icp::spank
