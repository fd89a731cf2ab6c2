// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/trace/tracee.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace icp {
namespace {

// Whoever traces a process has to wait for its end: until then its own parent does not hear of it, and Slurm's step
// never ends.
TEST(Tracee, OneKilledWhileItIsHeldIsWaitedFor) {
  constexpr size_t kBytes = 32 << 20;  // so that its end takes a moment
  for (int round = 0; round < 20; ++round) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      void* memory = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
      while (memory != nullptr) ::pause();
      ::_exit(0);
    }
    ::usleep(20'000);
    {
      Tracee thread = Tracee::seize(pid, false);
      thread.interrupt();
      thread.wait_stopped();
      ::kill(pid, SIGKILL);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(pid, &status, 0), -1) << "its end was left to nobody, round " << round;
    EXPECT_EQ(errno, ECHILD);
  }
}

}  // namespace
}  // namespace icp
