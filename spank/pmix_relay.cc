// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/pmix_relay.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "spank/start_program.h"

namespace icp::spank {
namespace {

// The same server for clients of several releases of PMIx (Slurm's mpi_pmix calls PMIx_server_setup_fork).
constexpr const char* kServerVariables[] = {"PMIX_SERVER_URI41", "PMIX_SERVER_URI4", "PMIX_SERVER_URI3",
                                            "PMIX_SERVER_URI21", "PMIX_SERVER_URI2", "PMIX_SERVER_URI"};
constexpr std::string_view kScheme = "tcp4://";

bool hand_over(int socket, int fd) {
  char byte = 0;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

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

void use_pmi_relay(const std::string& pmi, protocol::Packet& answer) {
  const std::string relay = answer.get("pmi_relay");
  const int given = std::atoi(pmi.c_str());
  if (relay.empty() || answer.fds.empty() || given <= 2) return;
  bool there = true;
  if (answer.fds.size() == 2) {
    const char* const argv[] = {relay.c_str(), "pmi", "3", nullptr};
    const char* const envp[] = {"PATH=/usr/bin:/bin", nullptr};
    there = start_program(argv, envp, answer.fds[1], answer.fds[1]) == 0;
  }
  // Without a relay the task keeps what it has.
  if (there && hand_over(answer.fds[0], given)) ::dup2(answer.fds[0], given);
  answer.close_fds();
}

}  // namespace icp::spank
