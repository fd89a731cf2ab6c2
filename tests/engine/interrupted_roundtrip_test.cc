// SPDX-License-Identifier: GPL-2.0-or-later
// System calls and sequences that a stop interrupts: they go on as if nothing had been.
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/rseq.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

class InterruptedRoundtrip : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
    // Processes are killed while they wait for a semaphore; with the namespace it goes, too.
    if (::geteuid() == 0) {
      ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
    }
  }
};

double seconds_since(const timespec& start) {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec - start.tv_sec) + static_cast<double>(now.tv_nsec - start.tv_nsec) / 1e9;
}

// Each call is interrupted by the stop and must go on as if nothing had been; the restored one ends by itself.
void expect_call_survives(const std::function<bool()>& call) {
  EXPECT_EQ(roundtrip(
                [&call](Gate& gate) {
                  gate.ready();
                  CHECK_OR_DIE(call());
                  gate.go();
                  return 0;
                },
                {.generations = 2, .versions = 3, .pause_ms = 60}),
            0);
}

TEST_F(InterruptedRoundtrip, Nanosleep) {
  expect_call_survives([] {
    timespec start;
    ::clock_gettime(CLOCK_MONOTONIC, &start);
    const timespec time{0, 700'000'000};
    return ::nanosleep(&time, nullptr) == 0 && seconds_since(start) >= 0.69;
  });
}

TEST_F(InterruptedRoundtrip, SleepKeepsItsRest) {
  expect_call_survives([] {
    timespec start;
    ::clock_gettime(CLOCK_MONOTONIC, &start);
    timespec time{0, 900'000'000};
    // As glibc's sleep(): the rest is written over the time asked for.
    const int result = static_cast<int>(::syscall(SYS_nanosleep, &time, &time));
    return result == 0 && seconds_since(start) >= 0.89 && seconds_since(start) < 3;
  });
}

TEST_F(InterruptedRoundtrip, Poll) {
  expect_call_survives([] { return ::poll(nullptr, 0, 500) == 0; });
}

TEST_F(InterruptedRoundtrip, EpollWait) {
  expect_call_survives([] {
    const int epoll = ::epoll_create1(0);
    epoll_event event;
    const bool timed_out = ::epoll_wait(epoll, &event, 1, 500) == 0;
    ::close(epoll);
    return timed_out;
  });
}

TEST_F(InterruptedRoundtrip, FutexWait) {
  expect_call_survives([] {
    uint32_t word = 1;
    const timespec time{0, 500'000'000};
    return ::syscall(SYS_futex, &word, FUTEX_WAIT, 1, &time, nullptr, 0) == -1 && errno == ETIMEDOUT;
  });
}

TEST_F(InterruptedRoundtrip, Sigtimedwait) {
  expect_call_survives([] {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    const timespec time{0, 400'000'000};
    return ::sigtimedwait(&set, nullptr, &time) == -1 && errno == EAGAIN;
  });
}

TEST_F(InterruptedRoundtrip, Read) {
  expect_call_survives([] {
    int ends[2];
    CHECK_OR_DIE(::pipe(ends) == 0);
    const pid_t writer = ::fork();
    if (writer == 0) {
      ::usleep(600'000);
      _exit(::write(ends[1], "x", 1) == 1 ? 0 : 1);
    }
    char byte = 0;
    const bool got = ::read(ends[0], &byte, 1) == 1 && byte == 'x';
    ::waitpid(writer, nullptr, 0);
    ::close(ends[0]);
    ::close(ends[1]);
    return got;
  });
}

TEST_F(InterruptedRoundtrip, Semtimedop) {
  expect_call_survives([] {
    const int id = ::semget(IPC_PRIVATE, 1, 0600);
    sembuf take{0, -1, 0};
    const timespec time{0, 400'000'000};
    const bool timed_out = ::semtimedop(id, &take, 1, &time) == -1 && errno == EAGAIN;
    ::semctl(id, 0, IPC_RMID);
    return timed_out;
  });
}

// Each waits 7 s, 6 of which pass before the last version of the first generation: begun anew they would take 13 s, and
// more for the restart.
TEST_F(InterruptedRoundtrip, TimeoutsInMemoryKeepTheirRest) {
  const auto waits = [](int which) {
    const timespec time{7, 0};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sembuf take{0, -1, 0};
    uint32_t word = 1;
    epoll_event event;
    switch (which) {
      case 0:
        return ::syscall(SYS_futex, &word, FUTEX_WAIT, 1, &time, nullptr, 0) == -1 && errno == ETIMEDOUT;
      case 1:
        return ::syscall(SYS_rt_sigtimedwait, &set, nullptr, &time, sizeof(uint64_t)) == -1 && errno == EAGAIN;
      case 2:
        return ::semtimedop(::semget(IPC_PRIVATE, 1, 0600), &take, 1, &time) == -1 && errno == EAGAIN;
      case 3:
        return ::syscall(SYS_epoll_pwait2, ::epoll_create1(0), &event, 1, &time, nullptr, 0) == 0;
      case 4:
        return ::nanosleep(&time, nullptr) == 0;
      default:
        return ::clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr) == 0;
    }
  };
  EXPECT_EQ(roundtrip(
                [&waits](Gate& gate) {
                  timespec start;
                  ::clock_gettime(CLOCK_MONOTONIC, &start);
                  std::array<std::thread, 6> threads;
                  std::array<double, 6> took{};
                  std::array<bool, 6> right{};
                  for (int i = 0; i < 6; ++i) {
                    threads[i] = std::thread([&, i] {
                      right[i] = waits(i);
                      took[i] = seconds_since(start);
                    });
                  }
                  gate.ready();
                  for (std::thread& thread : threads) thread.join();
                  gate.go();
                  for (int i = 0; i < 6; ++i) {
                    CHECK_OR_DIE(right[i]);
                    if (took[i] < 6.9 || took[i] > 12.5) fprintf(stderr, "wait %d took %.2f s\n", i, took[i]);
                    CHECK_OR_DIE(took[i] >= 6.9 && took[i] <= 12.5);
                  }
                  return 0;
                },
                {.generations = 2, .versions = 3, .pause_ms = 2000}),
            0);
}

// A thread that spins inside a restartable sequence: any stop there must end in its abort handler.
// More than find room in the vdso. The first version counts as the beginning.
// A stop by job control, or another agent, has turned the calls into restart_syscall(2) before: through functions of
// the C library, whose code tells the number, and through syscall(2).
TEST_F(InterruptedRoundtrip, CallsThatWereInterruptedBefore) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  std::atomic<int> failed = 0;
                  std::vector<std::thread> threads;
                  const auto wait = [&](auto call) {
                    threads.emplace_back([&failed, call] {
                      if (!call()) failed++;
                    });
                  };
                  static constexpr timespec kTime{1, 500'000'000};
                  static uint32_t word = 0;
                  wait([] { return ::nanosleep(&kTime, nullptr) == 0; });
                  wait([] { return ::syscall(SYS_nanosleep, &kTime, nullptr) == 0; });
                  wait([] { return ::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &kTime, nullptr) == 0; });
                  wait([] { return ::poll(nullptr, 0, 1500) == 0; });
                  wait([] { return ::syscall(SYS_poll, nullptr, 0, 1500) == 0; });
                  wait([] {
                    return ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &kTime, nullptr, 0) != 0 &&
                           errno == ETIMEDOUT;
                  });
                  ::usleep(50'000);
                  const pid_t child = ::fork();
                  if (child == 0) {
                    ::kill(::getppid(), SIGSTOP);
                    ::usleep(50'000);
                    ::_exit(::kill(::getppid(), SIGCONT));
                  }
                  CHECK_OR_DIE(::waitpid(child, nullptr, 0) == child);
                  gate.ready_and_go();
                  for (std::thread& thread : threads) thread.join();
                  return static_cast<int>(failed);
                },
                {.generations = 2}),
            0);
}

TEST_F(InterruptedRoundtrip, ManySleepersKeepTheirRest) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  constexpr int kSleepers = 100;
                  std::atomic<int> begun = 0, late = 0;
                  timespec restored{};
                  std::vector<std::thread> threads;
                  for (int i = 0; i < kSleepers; ++i) {
                    threads.emplace_back([&] {
                      const timespec time{4, 0};
                      ++begun;
                      CHECK_OR_DIE(::syscall(SYS_nanosleep, &time, nullptr) == 0);
                      if (restored.tv_sec != 0 && seconds_since(restored) > 3.2) ++late;
                    });
                  }
                  while (begun < kSleepers) ::usleep(1000);
                  gate.ready_and_go();
                  ::clock_gettime(CLOCK_MONOTONIC, &restored);
                  for (std::thread& thread : threads) thread.join();
                  CHECK_OR_DIE(late == 0);
                  return 0;
                },
                {.versions = 3, .pause_ms = 800}),
            0);
}

TEST_F(InterruptedRoundtrip, RestartableSequenceIsAborted) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              static const ptrdiff_t offset = __rseq_offset;
              CHECK_OR_DIE(__rseq_size != 0);  // glibc has registered one
              auto* area = reinterpret_cast<struct rseq*>(static_cast<char*>(__builtin_thread_pointer()) + offset);
              const pid_t child = ::fork();
              if (child == 0) {
                long aborted = 0;
                asm volatile(
                    ".pushsection __rseq_cs_test, \"aw\"\n"
                    ".balign 32\n"
                    "3: .long 0, 0\n"
                    ".quad 1f, 2f - 1f, 4f\n"
                    ".popsection\n"
                    "leaq 3b(%%rip), %%rax\n"
                    "movq %%rax, %[cs]\n"
                    "1: pause\n"  // for ever
                    "jmp 1b\n"
                    "2:\n"
                    ".pushsection __rseq_abort_test, \"ax\"\n"
                    ".byte 0x0f, 0xb9, 0x3d\n"
                    ".long 0x53053053\n"  // RSEQ_SIG
                    "4: movq $1, %[aborted]\n"
                    "jmp 5f\n"
                    ".popsection\n"
                    "5:\n"
                    : [aborted] "=m"(aborted), [cs] "=m"(area->rseq_cs)
                    :
                    : "rax", "memory", "cc");
                _exit(aborted == 1 ? 11 : 12);
              }
              ::usleep(50'000);
              gate.ready_and_go();
              int status = 0;
              CHECK_OR_DIE(::waitpid(child, &status, 0) == child);
              CHECK_OR_DIE(WIFEXITED(status) && WEXITSTATUS(status) == 11);
              // Still registered, and kept up to date by the kernel.
              CHECK_OR_DIE(area->cpu_id < static_cast<uint32_t>(::sysconf(_SC_NPROCESSORS_CONF)));
              constexpr unsigned kRegistered = 32;  // bytes, as glibc has registered
              CHECK_OR_DIE(::syscall(SYS_rseq, area, kRegistered, 0, 0x53053053) == -1 && errno == EBUSY);
              return 0;
            }),
            0);
}

// Coroutines run on stacks that are smaller than a signal's frame; what lies below them is somebody else's.
TEST_F(InterruptedRoundtrip, NothingBelowASmallStackIsTouched) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  static constexpr size_t kGuard = 64 << 10, kStack = 1024;
                  static std::array<unsigned char, kGuard + kStack> memory;
                  memory.fill(0xa5);
                  static ucontext_t outer, inner;
                  CHECK_OR_DIE(::getcontext(&inner) == 0);
                  inner.uc_stack.ss_sp = memory.data() + kGuard;
                  inner.uc_stack.ss_size = kStack;
                  inner.uc_link = &outer;
                  ::makecontext(
                      &inner,
                      +[] {
                        char byte;
                        long got;
                        asm volatile("syscall"
                                     : "=a"(got)
                                     : "0"(SYS_read), "D"(0), "S"(&byte), "d"(1)
                                     : "rcx", "r11", "memory");
                        if (got != 1) _exit(98);
                      },
                      0);
                  gate.ready();
                  CHECK_OR_DIE(::swapcontext(&outer, &inner) == 0);
                  for (size_t i = 0; i < kGuard; ++i) CHECK_OR_DIE(memory[i] == 0xa5);
                  return 0;
                },
                {.generations = 2, .versions = 3}),
            0);
}

TEST_F(InterruptedRoundtrip, Wait4) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              const pid_t child = ::fork();
              if (child == 0) {
                gate.go();
                ::_exit(5);
              }
              gate.ready();
              int status = 0;
              CHECK_OR_DIE(::waitpid(child, &status, 0) == child);
              CHECK_OR_DIE(WIFEXITED(status) && WEXITSTATUS(status) == 5);
              return 0;
            }),
            0);
}

// Calls that have done a part at each stop, and go on with the rest. Another process takes, or gives, piece by piece.
void expect_whole(int type, const std::function<ssize_t(int fd, std::vector<char>& bytes)>& call, bool receives) {
  expect_call_survives([&] {
    int ends[2];  // ours, the other's
    if (type == 0) {
      CHECK_OR_DIE(::pipe(ends) == 0);
      std::swap(ends[0], ends[1]);
    } else {
      CHECK_OR_DIE(::socketpair(AF_UNIX, type, 0, ends) == 0);
    }
    constexpr size_t kBytes = 3 << 20, kPieces = 12;
    const auto byte_at = [](size_t i) { return static_cast<char>(i * 2654435761u >> 9); };
    const pid_t other = ::fork();
    if (other == 0) {
      ::close(ends[0]);
      std::vector<char> piece(kBytes / kPieces);
      size_t at = 0;
      for (size_t i = 0; i < kPieces; ++i) {
        ::usleep(70'000);
        for (size_t got = 0; got < piece.size();) {
          if (receives)
            for (size_t k = got; k < piece.size(); ++k) piece[k] = byte_at(at + k);
          const ssize_t now = receives ? ::write(ends[1], piece.data() + got, piece.size() - got)
                                       : ::read(ends[1], piece.data() + got, piece.size() - got);
          if (now <= 0) _exit(1);
          got += static_cast<size_t>(now);
        }
        if (!receives)
          for (size_t k = 0; k < piece.size(); ++k)
            if (piece[k] != byte_at(at + k)) _exit(2);
        at += piece.size();
      }
      char byte;
      _exit(receives || ::read(ends[1], &byte, 1) == 0 ? 0 : 3);
    }
    ::close(ends[1]);
    std::vector<char> bytes(kBytes);
    if (!receives)
      for (size_t i = 0; i < kBytes; ++i) bytes[i] = byte_at(i);
    const ssize_t done = call(ends[0], bytes);
    if (done != static_cast<ssize_t>(kBytes)) dprintf(2, "%zd of %zu bytes (%m)\n", done, kBytes);
    for (size_t i = 0; i < kBytes; ++i) CHECK_OR_DIE(bytes[i] == byte_at(i));
    ::close(ends[0]);
    int status = -1;
    CHECK_OR_DIE(::waitpid(other, &status, 0) == other && status == 0);
    return done == static_cast<ssize_t>(kBytes);
  });
}

// Three buffers, the first of which is done soon.
std::array<iovec, 3> in_buffers(std::vector<char>& bytes) {
  return {iovec{bytes.data(), 1000},
          {bytes.data() + 1000, 1 << 20},
          {bytes.data() + 1000 + (1 << 20), bytes.size() - 1000 - (1 << 20)}};
}

TEST_F(InterruptedRoundtrip, WriteToAPipe) {
  expect_whole(
      0, [](int fd, std::vector<char>& bytes) { return ::write(fd, bytes.data(), bytes.size()); }, false);
}

TEST_F(InterruptedRoundtrip, WriteOfBuffersToAPipe) {
  expect_whole(
      0,
      [](int fd, std::vector<char>& bytes) {
        const auto buffers = in_buffers(bytes);
        return ::writev(fd, buffers.data(), buffers.size());
      },
      false);
}

TEST_F(InterruptedRoundtrip, WriteToASocket) {
  expect_whole(
      SOCK_STREAM, [](int fd, std::vector<char>& bytes) { return ::write(fd, bytes.data(), bytes.size()); }, false);
}

TEST_F(InterruptedRoundtrip, SendOfBuffers) {
  expect_whole(
      SOCK_STREAM,
      [](int fd, std::vector<char>& bytes) {
        auto buffers = in_buffers(bytes);
        msghdr message{};
        message.msg_iov = buffers.data();
        message.msg_iovlen = buffers.size();
        return ::sendmsg(fd, &message, 0);
      },
      false);
}

TEST_F(InterruptedRoundtrip, ReceiveOfAll) {
  expect_whole(
      SOCK_STREAM, [](int fd, std::vector<char>& bytes) { return ::recv(fd, bytes.data(), bytes.size(), MSG_WAITALL); },
      true);
}

TEST_F(InterruptedRoundtrip, ReceiveOfAllAsAMessage) {
  expect_whole(
      SOCK_STREAM,
      [](int fd, std::vector<char>& bytes) {
        iovec buffer{bytes.data(), bytes.size()};
        msghdr message{};
        message.msg_iov = &buffer;
        message.msg_iovlen = 1;
        return ::recvmsg(fd, &message, MSG_WAITALL);
      },
      true);
}

}  // namespace
}  // namespace icp::test
