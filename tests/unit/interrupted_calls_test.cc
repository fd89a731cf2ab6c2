// SPDX-License-Identifier: GPL-2.0-or-later
// Waits with a time-out that are stopped again and again.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <thread>
#include <vector>

#include "engine/process/stopped_tree.h"

namespace icp {
namespace {

using Clock = std::chrono::steady_clock;

// What the process below has ended with. A process that ends while it is being stopped is waited for by its tracer,
// which is its parent here: its status may be gone.
std::atomic<int>& result() {
  static void* const shared =
      ::mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return *static_cast<std::atomic<int>*>(shared);
}

// Ends with what `wait` returns.
pid_t start(int (*wait)(int epoll)) {
  result() = -1;
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  result() = wait(::epoll_create1(0));
  ::_exit(result());
}

// Stops the process every 50 ms until it ends, for at most 10 s. Returns how long it ran.
std::chrono::milliseconds stop_until_end(pid_t pid, int& status) {
  InterruptedCalls calls;
  const auto begin = Clock::now();
  for (pid_t ended = 0; (ended = ::waitpid(pid, &status, WNOHANG)) != pid;) {
    if (ended < 0) {
      status = W_EXITCODE(result(), 0);
      break;
    }
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

// ---- time-outs that lie in the program's memory ----------------------------------------------------

int sigtimedwait_fails_with_eagain(const timespec& time) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  return ::sigtimedwait(&set, nullptr, &time) == -1 ? errno : 0;
}

TEST(InterruptedCalls, SigtimedwaitTimesOutAndItsTimeoutStaysAsItWas) {
  int status = 0;
  const auto ran = stop_until_end(start([](int) {
                                    const timespec time{0, 700'000'000};
                                    const int error = sigtimedwait_fails_with_eagain(time);
                                    return error == EAGAIN && time.tv_nsec == 700'000'000 ? 7 : error;
                                  }),
                                  status);
  EXPECT_TRUE(WIFEXITED(status)) << "it never timed out";
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_GE(ran.count(), 650);
}

TEST(InterruptedCalls, EachSigtimedwaitOfALoopHasItsOwnTime) {
  int status = 0;
  const auto ran = stop_until_end(start([](int) {
                                    const timespec time{0, 200'000'000};
                                    for (int i = 0; i < 4; i++)
                                      if (sigtimedwait_fails_with_eagain(time) != EAGAIN) return 1;
                                    return 7;
                                  }),
                                  status);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_GE(ran.count(), 780);
}

TEST(InterruptedCalls, SemtimedopTimesOut) {
  int status = 0;
  const auto ran = stop_until_end(start([](int) {
                                    const int id = ::semget(IPC_PRIVATE, 1, 0600);
                                    sembuf take{0, -1, 0};
                                    const timespec time{0, 600'000'000};
                                    const int error = ::semtimedop(id, &take, 1, &time) == -1 ? errno : 0;
                                    ::semctl(id, 0, IPC_RMID);
                                    return error == EAGAIN ? 7 : error;
                                  }),
                                  status);
  EXPECT_TRUE(WIFEXITED(status)) << "it never timed out";
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_GE(ran.count(), 550);
}

TEST(InterruptedCalls, EpollPwait2TimesOut) {
  int status = 0;
  const auto ran = stop_until_end(
      start([](int epoll) {
        constexpr long kEpollPwait2 = 441;
        epoll_event event;
        const timespec time{0, 600'000'000};
        return static_cast<int>(::syscall(kEpollPwait2, epoll, &event, 1, &time, nullptr, 0) == 0 ? 7 : errno);
      }),
      status);
  EXPECT_TRUE(WIFEXITED(status)) << "it never timed out";
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_GE(ran.count(), 550);
}

// More threads than there are places for time-outs: those without one wait anew, none gets another's.
TEST(InterruptedCalls, ThreadsDoNotTakeEachOthersTime) {
  int status = 0;
  stop_until_end(start([](int) {
                   std::vector<std::thread> threads;
                   std::atomic<int> early = 0;
                   for (int i = 0; i < 20; i++) {
                     threads.emplace_back([i, &early] {
                       const timespec time{0, 100'000'000 + i * 40'000'000};
                       const auto begin = Clock::now();
                       if (sigtimedwait_fails_with_eagain(time) != EAGAIN) early = 100;
                       const auto took = std::chrono::nanoseconds(Clock::now() - begin).count();
                       if (took < time.tv_nsec - 20'000'000) ++early;
                     });
                   }
                   for (auto& thread : threads) thread.join();
                   return 7 + early.load();
                 }),
                 status);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

// ---- what an image holds -----------------------------------------------------------------------------

user_regs_struct image_of(pid_t pid, InterruptedCalls& calls) {
  StoppedTree tree({pid}, calls);
  return tree.processes().at(0).starts.at(0).image;
}

TEST(InterruptedCalls, AnImageHasTheRestOfAPollAndASleep) {
  for (const auto& [wait, number] : {std::pair{+[](int) { return ::poll(nullptr, 0, 60'000); }, SYS_poll},
                                     {+[](int) {
                                        timespec time{60, 0};
                                        return ::nanosleep(&time, &time);
                                      },
                                      SYS_clock_nanosleep}}) {
    InterruptedCalls calls;
    const pid_t pid = start(wait);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    image_of(pid, calls);
    std::this_thread::sleep_for(std::chrono::milliseconds(1000));
    // So soon after each other that the process may not have come to make its call again.
    for (int stop = 0; stop < 50; ++stop) {
      const user_regs_struct image = image_of(pid, calls);
      EXPECT_EQ(image.orig_rax, static_cast<uint64_t>(number))
          << stop << " " << std::hex << image.rip << " " << image.rsp << " " << image.rax;
      if (number == SYS_poll) {
        EXPECT_LE(image.rdx, 59'050u);
        EXPECT_GT(image.rdx, 1000u);
      } else {
        EXPECT_EQ(image.rdx, image.r10);
      }
    }
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
}

// ---- sockets with a time-out of their own ------------------------------------------------------------

int socket_with_timeout(int (&ends)[2]) {
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return errno;
  const timeval time{0, 400'000};
  return ::setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) == 0 ? 0 : errno;
}

TEST(InterruptedCalls, ReceivingWithATimeoutDoesNotSeeTheStop) {
  int status = 0;
  const auto ran = stop_until_end(start([](int) {
                                    int ends[2];
                                    if (socket_with_timeout(ends) != 0) return 1;
                                    char byte;
                                    if (::recv(ends[0], &byte, 1, 0) != -1 || errno != EAGAIN) return errno;
                                    if (::read(ends[0], &byte, 1) != -1 || errno != EAGAIN) return errno;
                                    return 7;
                                  }),
                                  status);
  EXPECT_TRUE(WIFEXITED(status)) << "it never timed out";
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_GE(ran.count(), 750);
  EXPECT_LT(ran.count(), 8000);
}

TEST(InterruptedCalls, WhatArrivesWhileReceivingWithATimeoutIsReceived) {
  int status = 0;
  stop_until_end(start([](int) {
                   int ends[2];
                   if (socket_with_timeout(ends) != 0) return 1;
                   std::thread sender([fd = ends[1]] {
                     std::this_thread::sleep_for(std::chrono::milliseconds(200));
                     if (::write(fd, "x", 1) != 1) ::_exit(9);
                   });
                   char byte = 0;
                   const ssize_t got = ::recv(ends[0], &byte, 1, 0);
                   const int received = got == 1 && byte == 'x' ? 7 : errno;
                   sender.join();
                   return received;
                 }),
                 status);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

}  // namespace
}  // namespace icp
