// SPDX-License-Identifier: GPL-2.0-or-later
// Processes, threads, signals and timers, there and back.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/error.h"
#include "tests/engine/amx_tile.h"
#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

class ProcessRoundtrip : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
  }
};

TEST_F(ProcessRoundtrip, PidAndLocalsSurvive) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              const pid_t pid = ::getpid();
              volatile int local = 42;
              gate.ready_and_go();
              CHECK_OR_DIE(::getpid() == pid);
              CHECK_OR_DIE(::syscall(SYS_gettid) == pid);
              CHECK_OR_DIE(local == 42);
              return 7;
            }),
            7 << 8);
}

// As Go has its threads: on stacks of a few KiB, side by side. What lies below one's stack pointer is the other's.
struct SmallStacks {
  static constexpr size_t kThreads = 6, kBytes = 2048, kBelow = 64 << 10;
  alignas(4096) char memory[kBelow + kThreads * kBytes];
  std::atomic<size_t> ready = 0, right = 0;
  std::atomic<bool> go = false;
};
SmallStacks small_stacks;

void wait_on_small_stack() {
  const auto tid = ::syscall(SYS_gettid);
  ++small_stacks.ready;
  while (!small_stacks.go) {
    const timespec time{0, 5'000'000};
    ::syscall(SYS_nanosleep, &time, nullptr);
  }
  if (::syscall(SYS_gettid) == tid) ++small_stacks.right;
}

TEST_F(ProcessRoundtrip, ThreadsOnSmallStacksSideBySide) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  std::fill_n(small_stacks.memory, SmallStacks::kBelow, 'x');
                  ::syscall(SYS_gettid);  // found by the dynamic linker now: on a small stack there is no room for that
                  std::vector<std::thread> threads;
                  for (size_t i = 0; i < SmallStacks::kThreads; ++i) {
                    threads.emplace_back([i] {
                      const std::string name = "small-" + std::to_string(i);
                      ::prctl(PR_SET_NAME, name.c_str());
                      ucontext_t own{}, small{};
                      ::getcontext(&small);
                      small.uc_stack.ss_sp = small_stacks.memory + SmallStacks::kBelow + i * SmallStacks::kBytes;
                      small.uc_stack.ss_size = SmallStacks::kBytes;
                      small.uc_link = &own;
                      ::makecontext(&small, wait_on_small_stack, 0);
                      ::swapcontext(&own, &small);
                      char have[16] = {};
                      ::prctl(PR_GET_NAME, have);
                      CHECK_OR_DIE(name == have);
                    });
                  }
                  while (small_stacks.ready < SmallStacks::kThreads) ::usleep(1000);
                  gate.ready_and_go();
                  small_stacks.go = true;
                  for (std::thread& thread : threads) thread.join();
                  CHECK_OR_DIE(small_stacks.right == SmallStacks::kThreads);
                  for (size_t i = 0; i < SmallStacks::kBelow; ++i) CHECK_OR_DIE(small_stacks.memory[i] == 'x');
                  return 0;
                },
                {.versions = 3}),
            0);
}

TEST_F(ProcessRoundtrip, TenGenerations) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  std::vector<int> data(100'000);
                  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<int>(i);
                  gate.ready_and_go();
                  for (size_t i = 0; i < data.size(); ++i) CHECK_OR_DIE(data[i] == static_cast<int>(i));
                  return 0;
                },
                {.generations = 10}),
            0);
}

TEST_F(ProcessRoundtrip, SeveralVersionsBeforeTheKill) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  static std::array<char, 1 << 20> data;
                  data.fill(5);
                  gate.ready();
                  gate.go();
                  for (const char byte : data) CHECK_OR_DIE(byte == 5);
                  return 0;
                },
                {.versions = 5}),
            0);
}

thread_local int tls_value = 0;

TEST_F(ProcessRoundtrip, ThreadsWithTheirLocals) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              std::atomic<int> ready = 0, done = 0;
              std::atomic<bool> restored = false;
              std::vector<std::thread> threads;
              for (int i = 0; i < 8; ++i) {
                threads.emplace_back([&, i] {
                  tls_value = i;
                  const long tid = ::syscall(SYS_gettid);
                  ++ready;
                  while (!restored) ::usleep(1000);
                  CHECK_OR_DIE(tls_value == i);
                  CHECK_OR_DIE(::syscall(SYS_gettid) == tid);
                  ++done;
                });
              }
              while (ready < 8) ::usleep(100);
              gate.ready_and_go();
              restored = true;
              for (auto& thread : threads) thread.join();  // set_tid_address: the kernel wakes the joiner
              CHECK_OR_DIE(done == 8);
              return 0;
            }),
            0);
}

TEST_F(ProcessRoundtrip, FloatingPointAndVectorRegisters) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              const double before = std::sqrt(2.0);
              volatile double spinning = before;
              __m256 vector = _mm256_set1_ps(1.5F);
              gate.ready();
              // Without a call in between the compiler keeps these in registers.
              asm volatile("vmovaps %0, %%ymm7" : : "x"(vector) : "xmm7");
              char byte;
              ssize_t got;
              asm volatile("syscall" : "=a"(got) : "0"(SYS_read), "D"(0), "S"(&byte), "d"(1) : "rcx", "r11", "memory");
              __m256 after;
              asm volatile("vmovaps %%ymm7, %0" : "=x"(after));
              CHECK_OR_DIE(got == 1);
              alignas(32) float values[8];
              _mm256_store_ps(values, after);
              for (const float value : values) CHECK_OR_DIE(value == 1.5F);
              CHECK_OR_DIE(spinning == before);
              return 0;
            }),
            0);
}

// A thread has room for tiles from its first use of them; a process may use them once it has asked.
TEST_F(ProcessRoundtrip, AmxTiles) {
  if (!processor_has_tiles()) GTEST_SKIP() << "this processor or kernel has no AMX";
  RoundtripOptions options;
  options.generations = 2;
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  CHECK_OR_DIE(ask_for_tiles());
                  std::atomic<bool> loaded = false, on = false;
                  std::thread other([&] {
                    load_tile(patterned(2));
                    loaded = true;
                    while (!on) ::usleep(1'000);
                    CHECK_OR_DIE(stored_tile() == patterned(2));
                    load_tile(patterned(3));
                    CHECK_OR_DIE(stored_tile() == patterned(3));
                  });
                  while (!loaded) ::usleep(1'000);
                  gate.ready_and_go();
                  load_tile(patterned(1));  // for the first time in this thread
                  CHECK_OR_DIE(stored_tile() == patterned(1));
                  on = true;
                  other.join();
                  return 0;
                },
                options),
            0);
}

volatile sig_atomic_t handled = 0, handled_value = 0;
void count(int, siginfo_t* info, void*) {
  handled = handled + 1;
  handled_value = info->si_value.sival_int;
}

void install(int number, int flags = 0) {
  struct sigaction action {};
  action.sa_sigaction = count;
  action.sa_flags = SA_SIGINFO | flags;
  CHECK_OR_DIE(::sigaction(number, &action, nullptr) == 0);
}

TEST_F(ProcessRoundtrip, PendingRealTimeSignalsInOrderWithValues) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              sigset_t set;
              sigemptyset(&set);
              sigaddset(&set, SIGRTMIN + 1);
              sigaddset(&set, SIGUSR1);
              sigprocmask(SIG_BLOCK, &set, nullptr);
              install(SIGUSR2);
              for (int i = 10; i < 13; ++i) CHECK_OR_DIE(::sigqueue(::getpid(), SIGRTMIN + 1, {.sival_int = i}) == 0);
              CHECK_OR_DIE(::syscall(SYS_tgkill, ::getpid(), ::getpid(), SIGUSR1) == 0);
              gate.ready_and_go();
              for (int i = 10; i < 13; ++i) {
                siginfo_t info;
                sigset_t rt;
                sigemptyset(&rt);
                sigaddset(&rt, SIGRTMIN + 1);
                const timespec none{};
                CHECK_OR_DIE(::sigtimedwait(&rt, &info, &none) == SIGRTMIN + 1);
                CHECK_OR_DIE(info.si_value.sival_int == i);
                CHECK_OR_DIE(info.si_pid == ::getpid());
              }
              sigset_t pending;
              CHECK_OR_DIE(::sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1) == 1);
              CHECK_OR_DIE(::raise(SIGUSR2) == 0 && handled == 1);
              return 0;
            }),
            0);
}

// scancel sends SIGTERM while a version is being taken: restored from that version, the job would end at once.
TEST_F(ProcessRoundtrip, NoVersionOfAProcessThatASignalIsEnding) {
  const TempDir dir;
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const bool blocked : {false, true}) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      for (int fd = 0; fd < 3; ++fd) ::dup2(null, fd);
      ::close_range(3, ~0U, 0);
      sigset_t set;
      sigemptyset(&set);
      if (blocked) sigaddset(&set, SIGTERM);
      sigprocmask(SIG_SETMASK, &set, nullptr);
      while (true) ::pause();
    }
    SessionConfig config;
    config.image_path = dir.path() + (blocked ? "/blocked" : "/deadly");
    config.node = "n";
    config.identity = {::geteuid(), ::getegid(), {}};
    Session session(std::move(config), {{pid, 0}});
    CheckpointOptions options;
    options.gate = [pid](CheckpointOptions::Phase phase) {
      if (phase == CheckpointOptions::Phase::kStopped) ::kill(pid, SIGTERM);
    };
    ::usleep(50'000);
    int status = 0;
    if (blocked) {
      EXPECT_EQ(session.checkpoint(options).version, 1u);
      ::kill(pid, SIGKILL);
    } else {
      try {
        session.checkpoint(options);
        ADD_FAILURE() << "a version of a process that is being ended";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kGone) << error.what();
        EXPECT_NE(std::string(error.what()).find("is being ended by signal 15"), std::string::npos) << error.what();
      }
    }
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_EQ(WTERMSIG(status), blocked ? SIGKILL : SIGTERM);
  }
  ::close(null);
}

TEST_F(ProcessRoundtrip, AlternateStackAndMask) {
  EXPECT_EQ(
      roundtrip([](Gate& gate) {
        static char stack[65536];
        const stack_t alternate{.ss_sp = stack, .ss_flags = 0, .ss_size = sizeof stack};
        CHECK_OR_DIE(::sigaltstack(&alternate, nullptr) == 0);
        install(SIGUSR1, SA_ONSTACK);
        sigset_t set, now;
        sigemptyset(&set);
        sigaddset(&set, SIGWINCH);
        sigprocmask(SIG_BLOCK, &set, nullptr);
        gate.ready_and_go();
        stack_t after;
        CHECK_OR_DIE(::sigaltstack(nullptr, &after) == 0 && after.ss_sp == stack && after.ss_size == sizeof stack);
        sigprocmask(SIG_SETMASK, nullptr, &now);
        CHECK_OR_DIE(sigismember(&now, SIGWINCH) == 1 && sigismember(&now, SIGUSR1) == 0);
        CHECK_OR_DIE(::raise(SIGUSR1) == 0 && handled == 1);
        return 0;
      }),
      0);
}

// The owner of a robust mutex dies after the restart: who waits for it is told.
TEST_F(ProcessRoundtrip, RobustListSurvives) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              auto* mutex = static_cast<pthread_mutex_t*>(
                  ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
              pthread_mutexattr_t attributes;
              ::pthread_mutexattr_init(&attributes);
              ::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
              ::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
              CHECK_OR_DIE(::pthread_mutex_init(mutex, &attributes) == 0);
              const pid_t owner = ::fork();
              if (owner == 0) {
                ::pthread_mutex_lock(mutex);
                for (;;) ::pause();
              }
              ::usleep(50'000);
              gate.ready_and_go();
              CHECK_OR_DIE(::kill(owner, SIGKILL) == 0);
              CHECK_OR_DIE(::pthread_mutex_lock(mutex) == EOWNERDEAD);
              return 0;
            }),
            0);
}

TEST_F(ProcessRoundtrip, AffinityPolicyPersonality) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              cpu_set_t one, now;
              CPU_ZERO(&one);
              CPU_SET(0, &one);
              CHECK_OR_DIE(::sched_setaffinity(0, sizeof one, &one) == 0);
              const sched_param parameters{};
              CHECK_OR_DIE(::sched_setscheduler(0, SCHED_BATCH, &parameters) == 0);
              CHECK_OR_DIE(::personality(ADDR_NO_RANDOMIZE) != -1);
              CHECK_OR_DIE(::prctl(PR_SET_TIMERSLACK, 123'456) == 0);
              const unsigned long vdso = ::getauxval(AT_SYSINFO_EHDR);
              gate.ready_and_go();
              CHECK_OR_DIE(::sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&one, &now));
              CHECK_OR_DIE(::sched_getscheduler(0) == SCHED_BATCH);
              CHECK_OR_DIE(::personality(0xffffffff) == ADDR_NO_RANDOMIZE);
              CHECK_OR_DIE(::prctl(PR_GET_TIMERSLACK) == 123'456);
              CHECK_OR_DIE(std::memcmp(reinterpret_cast<const void*>(vdso), "\177ELF", 4) == 0);
              timespec time;
              CHECK_OR_DIE(::clock_gettime(CLOCK_MONOTONIC, &time) == 0);  // through the vdso
              return 0;
            }),
            0);
}

TEST_F(ProcessRoundtrip, IntervalTimerGoesOn) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              install(SIGALRM, SA_RESTART);
              const itimerval timer{{0, 0}, {1, 0}};
              CHECK_OR_DIE(::setitimer(ITIMER_REAL, &timer, nullptr) == 0);
              gate.ready_and_go();
              for (int i = 0; i < 300 && handled == 0; ++i) ::usleep(10'000);
              CHECK_OR_DIE(handled == 1);
              return 0;
            }),
            0);
}

TEST_F(ProcessRoundtrip, PosixTimerKeepsIdAndRest) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              install(SIGUSR1, SA_RESTART);
              timer_t first, second;
              sigevent event{};
              event.sigev_notify = SIGEV_SIGNAL;
              event.sigev_signo = SIGUSR1;
              event.sigev_value.sival_int = 77;
              CHECK_OR_DIE(::timer_create(CLOCK_MONOTONIC, &event, &first) == 0);
              CHECK_OR_DIE(::timer_create(CLOCK_MONOTONIC, &event, &second) == 0);
              CHECK_OR_DIE(::timer_delete(first) == 0);  // the second's id is not the first free one
              const itimerspec time{{0, 0}, {100, 0}};
              CHECK_OR_DIE(::timer_settime(second, 0, &time, nullptr) == 0);
              gate.ready_and_go();
              itimerspec rest;
              CHECK_OR_DIE(::timer_gettime(second, &rest) == 0);
              CHECK_OR_DIE(rest.it_value.tv_sec >= 90 && rest.it_value.tv_sec <= 100);
              const itimerspec soon{{0, 0}, {0, 1'000'000}};
              CHECK_OR_DIE(::timer_settime(second, 0, &soon, nullptr) == 0);
              for (int i = 0; i < 300 && handled == 0; ++i) ::usleep(10'000);
              CHECK_OR_DIE(handled == 1 && handled_value == 77);
              return 0;
            }),
            0);
}

// /proc names the thread by the agent's number, which is not the thread's own from the second generation on.
TEST_F(ProcessRoundtrip, SeveralPosixTimersKeepTheirIds) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  std::array<timer_t, 5> timers{};
                  for (size_t i = 0; i < timers.size(); ++i) {
                    sigevent event{};
                    event.sigev_notify = SIGEV_NONE;
                    CHECK_OR_DIE(::timer_create(CLOCK_MONOTONIC, &event, &timers[i]) == 0);
                    const itimerspec time{{0, 0}, {static_cast<time_t>(1000 * (i + 1)), 0}};
                    CHECK_OR_DIE(::timer_settime(timers[i], 0, &time, nullptr) == 0);
                  }
                  CHECK_OR_DIE(::timer_delete(timers[1]) == 0);
                  gate.ready_and_go();
                  for (const size_t i : {0u, 2u, 3u, 4u}) {
                    itimerspec time{};
                    CHECK_OR_DIE(::timer_gettime(timers[i], &time) == 0);
                    const auto full = static_cast<time_t>(1000 * (i + 1));
                    CHECK_OR_DIE(time.it_value.tv_sec < full && time.it_value.tv_sec > full - 100);
                  }
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(ProcessRoundtrip, PosixTimerOfAThreadNotifiesItInEveryGeneration) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  install(SIGUSR1, SA_RESTART);
                  timer_t timer;
                  sigevent event{};
                  event.sigev_notify = SIGEV_THREAD_ID;
                  event.sigev_signo = SIGUSR1;
                  event.sigev_value.sival_int = 78;
                  event._sigev_un._tid = ::gettid();
                  CHECK_OR_DIE(::timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
                  gate.ready_and_go();
                  const itimerspec soon{{0, 0}, {0, 1'000'000}};
                  CHECK_OR_DIE(::timer_settime(timer, 0, &soon, nullptr) == 0);
                  for (int i = 0; i < 300 && handled == 0; ++i) ::usleep(10'000);
                  CHECK_OR_DIE(handled == 1 && handled_value == 78);
                  return 0;
                },
                {.generations = 3}),
            0);
}

TEST_F(ProcessRoundtrip, LimitsUmaskNiceNameDirectory) {
  EXPECT_EQ(
      roundtrip([](Gate& gate) {
        CHECK_OR_DIE(::chdir("/usr/share") == 0);
        ::umask(027);
        CHECK_OR_DIE(::nice(5) == 5);
        CHECK_OR_DIE(::prctl(PR_SET_NAME, "renamed") == 0);
        CHECK_OR_DIE(::prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0);
        const rlimit limit{64 << 20, 128 << 20};
        CHECK_OR_DIE(::setrlimit(RLIMIT_CORE, &limit) == 0);
        gate.ready_and_go();
        char text[256];
        CHECK_OR_DIE(::getcwd(text, sizeof text) != nullptr && std::strcmp(text, "/usr/share") == 0);
        CHECK_OR_DIE(::umask(0) == 027);
        CHECK_OR_DIE(::getpriority(PRIO_PROCESS, 0) == 5);
        CHECK_OR_DIE(::prctl(PR_GET_NAME, text) == 0 && std::strcmp(text, "renamed") == 0);
        int signal = 0;
        CHECK_OR_DIE(::prctl(PR_GET_PDEATHSIG, &signal) == 0 && signal == SIGUSR2);
        rlimit now;
        CHECK_OR_DIE(::getrlimit(RLIMIT_CORE, &now) == 0 && now.rlim_cur == limit.rlim_cur &&
                     now.rlim_max == limit.rlim_max);
        CHECK_OR_DIE(::readlink("/proc/self/exe", text, sizeof text) > 0 && std::strstr(text, "_test") != nullptr);
        CHECK_OR_DIE(::getuid() == 65534 && ::geteuid() == 65534 && ::getgid() == 65534);
        return 0;
      }),
      0);
}

// Processor time is counted from 0 again: of a limit of it, what is left comes back.
TEST_F(ProcessRoundtrip, WhatIsLeftOfTheLimitOfProcessorTime) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const rlimit limit{100, 200};
                  CHECK_OR_DIE(::setrlimit(RLIMIT_CPU, &limit) == 0);
                  while (::clock() < 12 * CLOCKS_PER_SEC / 10) continue;
                  gate.ready_and_go();
                  rlimit now;
                  CHECK_OR_DIE(::getrlimit(RLIMIT_CPU, &now) == 0);
                  CHECK_OR_DIE(now.rlim_cur < 100 && now.rlim_cur > 90 && now.rlim_max == now.rlim_cur + 100);
                  return 0;
                },
                {.same_view = false}),
            0);
}

// What prctl(2) sets, and the core filter.
TEST_F(ProcessRoundtrip, ControlsAndCoreFilter) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  constexpr int kMachineCheck = 33, kGetMachineCheck = 34, kMdwe = 65, kGetMdwe = 66;
                  const auto core_filter = [] {
                    char text[32] = "";
                    const int fd = ::open("/proc/self/coredump_filter", O_RDONLY);
                    CHECK_OR_DIE(::read(fd, text, sizeof text - 1) > 0);
                    ::close(fd);
                    return std::string(text);
                  };
                  CHECK_OR_DIE(::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);  // it has changed its ids
                  const int fd = ::open("/proc/self/coredump_filter", O_WRONLY);
                  CHECK_OR_DIE(::write(fd, "0x7", 3) == 3);
                  ::close(fd);
                  CHECK_OR_DIE(core_filter() == "00000007\n");
                  CHECK_OR_DIE(::prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0);
                  CHECK_OR_DIE(::prctl(kMachineCheck, 1, 1, 0, 0) == 0);
                  CHECK_OR_DIE(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
                  const int mdwe = ::prctl(kMdwe, 1, 0, 0, 0) == 0 ? 1 : -1;  // Linux 6.3
                  gate.ready_and_go();
                  CHECK_OR_DIE(core_filter() == "00000007\n");
                  CHECK_OR_DIE(::prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0) == 1);
                  CHECK_OR_DIE(::prctl(kGetMachineCheck, 0, 0, 0, 0) == 1);
                  CHECK_OR_DIE(::prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
                  CHECK_OR_DIE(mdwe < 0 || ::prctl(kGetMdwe, 0, 0, 0, 0) == mdwe);
                  return 0;
                },
                {.generations = 2}),
            0);
}

// What only the program itself is told: registrations of membarrier(2), locks of what is yet to be mapped, NUMA policy.
TEST_F(ProcessRoundtrip, MemorySettings) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  constexpr int kPrivate = 1 << 3, kRegisterPrivate = 1 << 4, kRegistrations = 1 << 9, kInterleave = 3;
                  CHECK_OR_DIE(::syscall(SYS_membarrier, kRegisterPrivate, 0, 0) == 0);
                  const long registrations = ::syscall(SYS_membarrier, kRegistrations, 0, 0);
                  unsigned long nodes = 1;
                  const bool numa = ::syscall(SYS_set_mempolicy, kInterleave, &nodes, 64) == 0;
                  CHECK_OR_DIE(::mlockall(MCL_FUTURE) == 0);
                  const auto next_is_locked = [] {
                    void* const at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                    CHECK_OR_DIE(at != MAP_FAILED);
                    return ::msync(at, 4096, MS_INVALIDATE) == -1 && errno == EBUSY;
                  };
                  CHECK_OR_DIE(next_is_locked());
                  gate.ready_and_go();
                  CHECK_OR_DIE(::syscall(SYS_membarrier, kPrivate, 0, 0) == 0);
                  CHECK_OR_DIE(::syscall(SYS_membarrier, kRegistrations, 0, 0) == registrations);
                  int mode = 0;
                  CHECK_OR_DIE(!numa || (::syscall(SYS_get_mempolicy, &mode, &nodes, 64, 0, 0) == 0 &&
                                         mode == kInterleave && nodes == 1));
                  CHECK_OR_DIE(next_is_locked());
                  return 0;
                },
                {.generations = 2}),
            0);
}

// The parent has been told already: it is not told again.
TEST_F(ProcessRoundtrip, StopThatHasBeenWaitedFor) {
  static volatile sig_atomic_t told = 0;
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const pid_t child = ::fork();
                  if (child == 0) {
                    ::raise(SIGSTOP);
                    ::_exit(5);
                  }
                  int status = 0;
                  CHECK_OR_DIE(::waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
                  struct sigaction action {};
                  action.sa_handler = [](int) { told = told + 1; };
                  ::sigaction(SIGCHLD, &action, nullptr);
                  gate.ready_and_go();
                  CHECK_OR_DIE(::waitpid(child, &status, WUNTRACED | WNOHANG) == 0 && told == 0);
                  ::kill(child, SIGCONT);
                  while (::waitpid(child, &status, 0) != child) CHECK_OR_DIE(errno == EINTR);
                  CHECK_OR_DIE(WIFEXITED(status) && WEXITSTATUS(status) == 5);
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(ProcessRoundtrip, ChildrenZombiesAndExitStatus) {
  EXPECT_EQ(
      roundtrip([](Gate& gate) {
        const pid_t exited = ::fork();
        if (exited == 0) ::_exit(3);
        const pid_t killed = ::fork();
        if (killed == 0) {
          ::raise(SIGTERM);
          ::_exit(1);
        }
        siginfo_t info;
        CHECK_OR_DIE(::waitid(P_PID, static_cast<id_t>(exited), &info, WEXITED | WNOWAIT) == 0);
        CHECK_OR_DIE(::waitid(P_PID, static_cast<id_t>(killed), &info, WEXITED | WNOWAIT) == 0);
        gate.ready_and_go();
        int status = 0;
        CHECK_OR_DIE(::waitpid(exited, &status, 0) == exited && WIFEXITED(status) && WEXITSTATUS(status) == 3);
        CHECK_OR_DIE(::waitpid(killed, &status, 0) == killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
        return 0;
      }),
      0);
}

TEST_F(ProcessRoundtrip, StoppedChildStaysStopped) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              const pid_t child = ::fork();
              if (child == 0) {
                ::raise(SIGSTOP);
                ::_exit(4);
              }
              int status = 0;
              CHECK_OR_DIE(::waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
              gate.ready_and_go();
              ::usleep(50'000);
              CHECK_OR_DIE(::waitpid(child, &status, WNOHANG) == 0);
              CHECK_OR_DIE(::kill(child, SIGCONT) == 0);
              CHECK_OR_DIE(::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 4);
              return 0;
            }),
            0);
}

// SIGKILL and a signal that only the default action lets end a process; nobody has waited for them yet.
TEST_F(ProcessRoundtrip, ZombieThatSigkillEnded) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              const pid_t child = ::fork();
              if (child == 0)
                for (;;) ::pause();
              CHECK_OR_DIE(::kill(child, SIGKILL) == 0);
              siginfo_t info;
              CHECK_OR_DIE(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) == 0);
              gate.ready_and_go();
              int status = 0;
              CHECK_OR_DIE(::waitpid(child, &status, 0) == child && status == SIGKILL);
              return 0;
            }),
            0);
}

// The group's leader is gone for good, its only member a zombie.
TEST_F(ProcessRoundtrip, ZombieInAGroupWithoutLeader) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              const pid_t leader = ::fork();
              if (leader == 0)
                for (;;) ::pause();
              CHECK_OR_DIE(::setpgid(leader, leader) == 0);
              const pid_t member = ::fork();
              if (member == 0)
                for (;;) ::pause();
              CHECK_OR_DIE(::setpgid(member, leader) == 0);
              siginfo_t info;
              int status = 0;
              CHECK_OR_DIE(::kill(member, SIGTERM) == 0);
              CHECK_OR_DIE(::waitid(P_PID, static_cast<id_t>(member), &info, WEXITED | WNOWAIT) == 0);
              CHECK_OR_DIE(::kill(leader, SIGKILL) == 0 && ::waitpid(leader, &status, 0) == leader);
              gate.ready_and_go();
              CHECK_OR_DIE(::waitpid(-leader, &status, 0) == member && WTERMSIG(status) == SIGTERM);
              return 0;
            }),
            0);
}

// As scontrol suspend does to a process that its user has stopped.
TEST_F(ProcessRoundtrip, StopOfAStoppedChild) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              const pid_t child = ::fork();
              if (child == 0) {
                ::setpgid(0, 0);  // in a group that its parent, in another one, keeps from being an orphan
                ::raise(SIGTSTP);
                ::_exit(4);
              }
              int status = 0;
              CHECK_OR_DIE(::waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
              CHECK_OR_DIE(::kill(child, SIGSTOP) == 0);
              gate.ready_and_go();
              ::usleep(50'000);
              CHECK_OR_DIE(::waitpid(child, &status, WNOHANG) == 0);
              CHECK_OR_DIE(::kill(child, SIGCONT) == 0);
              CHECK_OR_DIE(::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 4);
              return 0;
            }),
            0);
}

TEST_F(ProcessRoundtrip, SessionsAndGroupsOfLivingAndDeadLeaders) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              // A session whose leader has ended, with a group whose leader has ended, orphaned to our subreaper-less
              // init.
              int ids[2];
              CHECK_OR_DIE(::pipe(ids) == 0);
              const pid_t leader = ::fork();
              if (leader == 0) {
                ::setsid();
                if (::fork() == 0) {
                  if (const pid_t grandchild = ::fork(); grandchild == 0) {
                    ::setpgid(0, 0);
                    const pid_t member = ::fork();
                    if (member == 0) {
                      const pid_t numbers[3] = {::getpid(), ::getsid(0), ::getpgid(0)};
                      CHECK_OR_DIE(::write(ids[1], numbers, sizeof numbers) == sizeof numbers);
                      ::alarm(5);  // an orphan of the test machine's init: it ends by itself
                      for (;;) ::pause();
                    }
                    ::_exit(0);
                  }
                }
                ::usleep(20'000);
                ::_exit(0);
              }
              ::waitpid(leader, nullptr, 0);
              pid_t numbers[3];
              CHECK_OR_DIE(::read(ids[0], numbers, sizeof numbers) == sizeof numbers);
              const pid_t child = ::fork();
              if (child == 0) {
                ::setpgid(0, 0);
                for (;;) ::pause();
              }
              ::usleep(20'000);
              const pid_t session = ::getsid(0), group = ::getpgid(0);
              gate.ready_and_go();
              CHECK_OR_DIE(::getsid(0) == session && ::getpgid(0) == group);
              CHECK_OR_DIE(::getpgid(child) == child && ::getsid(child) == session);
              CHECK_OR_DIE(::kill(child, SIGKILL) == 0);
              return 0;
            }),
            0);
}

// clone(2) without CLONE_VM: what one opens, the others have; where one goes, the others are.
TEST_F(ProcessRoundtrip, DescriptorsAndDirectoriesSharedByProcesses) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  int to[2], from[2];
                  char byte = 'x';
                  CHECK_OR_DIE(::pipe(to) == 0 && ::pipe(from) == 0);
                  const auto clone_sharing = [](uint64_t flags) {
                    return static_cast<pid_t>(::syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0));
                  };
                  const pid_t child = clone_sharing(CLONE_FILES | CLONE_FS);
                  if (child == 0) {
                    const pid_t grandchild = clone_sharing(CLONE_FILES);
                    if (grandchild == 0) {
                      CHECK_OR_DIE(::chdir("/usr") == 0);
                      for (;;) ::pause();
                    }
                    CHECK_OR_DIE(::dup2(to[1], 50) == 50 && ::chdir("/var") == 0);
                    CHECK_OR_DIE(::write(from[1], &byte, 1) == 1 && ::read(to[0], &byte, 1) == 1);
                    char cwd[64];
                    CHECK_OR_DIE(::dup2(to[1], 51) == 51 && ::close(50) == 0 && ::getcwd(cwd, sizeof cwd) != nullptr);
                    CHECK_OR_DIE(std::string(cwd) == "/var" && ::chdir("/etc") == 0);
                    CHECK_OR_DIE(::kill(grandchild, SIGKILL) == 0 && ::waitpid(grandchild, nullptr, 0) == grandchild);
                    ::_exit(0);
                  }
                  CHECK_OR_DIE(::read(from[0], &byte, 1) == 1 && ::fcntl(50, F_GETFD) == 0);
                  gate.ready_and_go();
                  int status = 0;
                  CHECK_OR_DIE(::write(50, &byte, 1) == 1 && ::waitpid(child, &status, 0) == child && status == 0);
                  char cwd[64];
                  CHECK_OR_DIE(::fcntl(50, F_GETFD) == -1 && ::fcntl(51, F_GETFD) == 0);
                  CHECK_OR_DIE(::getcwd(cwd, sizeof cwd) != nullptr && std::string(cwd) == "/etc");
                  return 0;
                },
                {.generations = 3, .versions = 2}),
            0);
}

// Strict mode: read, write, exit only. Root alone can put it aside.
TEST_F(ProcessRoundtrip, SandboxedProcess) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  CHECK_OR_DIE(::syscall(SYS_prctl, PR_SET_SECCOMP, 1) == 0);
                  gate.ready_and_go();
                  ::syscall(SYS_exit, 0);
                  return 1;
                },
                {.generations = 2, .expect_refused = ::geteuid() != 0, .same_view = false}),
            0);
}

}  // namespace
}  // namespace icp::test
