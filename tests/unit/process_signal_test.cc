// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/process_signal.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/base/procfs.h"

namespace icp {
namespace {

TEST(ProcessSignal, GoesToTheProcessThatWasMeant) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    for (;;) ::pause();
  }
  const uint64_t start = ProcStat::read(pid).start_time_ticks;
  EXPECT_FALSE(signal_process(pid, start + 1, SIGKILL));  // a later one that has the number of another
  EXPECT_FALSE(signal_process(pid, start - 1, SIGKILL));
  EXPECT_EQ(::waitpid(pid, nullptr, WNOHANG), 0);
  EXPECT_TRUE(signal_process(pid, start, SIGTERM));
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
  EXPECT_FALSE(signal_process(pid, start, SIGKILL));
  EXPECT_FALSE(signal_process(-1, 0, SIGKILL));
  EXPECT_FALSE(signal_process(0, 0, SIGKILL));
}

}  // namespace
}  // namespace icp
