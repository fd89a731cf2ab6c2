// SPDX-License-Identifier: GPL-2.0-or-later
// Waits with a time-out that are stopped again and again.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "engine/process/stopped_tree.h"

namespace icp {
namespace {

using Clock = std::chrono::steady_clock;

// Ends with what `wait` returns.
pid_t start(int (*wait)(int epoll)) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::_exit(wait(::epoll_create1(0)));
}

// Stops the process every 50 ms until it ends, for at most 10 s. Returns how long it ran.
std::chrono::milliseconds stop_until_end(pid_t pid, int& status) {
  InterruptedCalls calls;
  const auto begin = Clock::now();
  while (::waitpid(pid, &status, WNOHANG) == 0) {
    if (Clock::now() - begin > std::chrono::seconds(10)) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, &status, 0);
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    try {
      const StoppedTree tree({pid}, calls);
    } catch (const std::exception&) {
      continue;  // it has just ended
    }
  }
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin);
}

TEST(InterruptedCalls, EpollWaitTimesOutThoughItIsStoppedMoreOftenThanThat) {
  int status = 0;
  const auto ran = stop_until_end(start([](int epoll) {
                                    epoll_event event;
                                    return ::epoll_wait(epoll, &event, 1, 700);
                                  }),
                                  status);
  EXPECT_TRUE(WIFEXITED(status)) << "it never timed out";
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_GE(ran.count(), 650);
}

TEST(InterruptedCalls, EachWaitOfALoopHasItsOwnTime) {
  int status = 0;
  const auto ran = stop_until_end(start([](int epoll) {
                                    epoll_event event;
                                    for (int i = 0; i < 4; i++)
                                      if (::epoll_wait(epoll, &event, 1, 200) != 0) return 1;
                                    return 7;
                                  }),
                                  status);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_GE(ran.count(), 780);
}

}  // namespace
}  // namespace icp
