// SPDX-License-Identifier: GPL-2.0-or-later
// icp-pmix LISTENER CONTROL: the relay of a step's PMIx messages on one node (relay.h). The first task of the step
// starts it, as the job's user; it has no rights that the tasks do not have.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "coordinator/pmix/relay.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    constexpr char kText[] = "icp-pmix is started by slurmstepd, see spank_icp(8)\n";
    return ::write(STDERR_FILENO, kText, std::strlen(kText)) < 0 ? 1 : 2;
  }
  const int listener = std::atoi(argv[1]), control = std::atoi(argv[2]);
  for (const int fd : {listener, control}) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  // What is meant for the tasks does not end it: it ends with them.
  for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGPIPE, SIGALRM, SIGXCPU})
    ::signal(signal, SIG_IGN);
  icp::pmix::Relay(icp::UniqueFd(listener), icp::UniqueFd(control)).run();
  return 0;
}
