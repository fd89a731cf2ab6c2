// SPDX-License-Identifier: GPL-2.0-or-later
// The agent is killed at any moment of a checkpoint: the job goes on, and the last committed version is whole.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/session.h"
#include "engine/trace/return_frame.h"
#include "tests/engine/amx_tile.h"
#include "tests/engine/roundtrip.h"
#include "tests/killed_at.h"

namespace icp::test {
namespace {

constexpr int kRounds = 60;
constexpr uid_t kNobody = 65534;

struct Shared {
  std::atomic<uint64_t> computed, slept, wrong, versions;
  std::atomic<bool> stop;
};

constexpr long kTurns = 200'000;  // half a millisecond

// Whether registers of every width keep what they hold for a while. Mask registers and those that AVX-512 added have
// pieces of the extended state of their own.
__attribute__((target("avx512f,avx512bw"))) bool keeps_avx512(uint64_t value) {
  uint32_t differ = 0;
  long turns = kTurns;
  asm volatile(
      "vpbroadcastq %[value], %%zmm5\n vpbroadcastq %[value], %%zmm30\n kmovq %[value], %%k5\n"
      "1: dec %[turns]\n jnz 1b\n"
      "vpbroadcastq %[value], %%zmm1\n kmovq %[value], %%k3\n"
      "vpcmpneqq %%zmm1, %%zmm5, %%k1\n vpcmpneqq %%zmm1, %%zmm30, %%k2\n"
      "kxorq %%k3, %%k5, %%k3\n korq %%k1, %%k2, %%k1\n korq %%k1, %%k3, %%k1\n"
      "kortestq %%k1, %%k1\n setnz %b[differ]\n vzeroupper\n"
      : [turns] "+r"(turns), [differ] "+q"(differ)
      : [value] "r"(value)
      : "xmm1", "xmm5", "xmm30", "k1", "k2", "k3", "k5", "cc");
  return differ == 0;
}

__attribute__((target("avx2"))) bool keeps_avx(uint64_t value) {
  uint32_t differ = 0;
  long turns = kTurns;
  asm volatile(
      "vmovq %[value], %%xmm5\n vpbroadcastq %%xmm5, %%ymm5\n"
      "1: dec %[turns]\n jnz 1b\n"
      "vmovq %[value], %%xmm1\n vpbroadcastq %%xmm1, %%ymm1\n vpxor %%ymm1, %%ymm5, %%ymm1\n"
      "vptest %%ymm1, %%ymm1\n setnz %b[differ]\n vzeroupper\n"
      : [turns] "+r"(turns), [differ] "+q"(differ)
      : [value] "r"(value)
      : "xmm1", "xmm5", "cc");
  return differ == 0;
}

bool keeps_tile(uint8_t seed) {
  load_tile(patterned(seed));
  long turns = kTurns;
  asm volatile("1: dec %0\n jnz 1b" : "+r"(turns) : : "cc");
  return stored_tile() == patterned(seed);
}

bool nothing_is_blocked() {
  sigset_t mask;
  return ::pthread_sigmask(SIG_BLOCK, nullptr, &mask) == 0 && sigisemptyset(&mask);
}

// Calculates in vector registers, with signals arriving, and notices any register that is not what it was.
void calculate(Shared& shared, bool tiles) {
  const bool avx512 = __builtin_cpu_supports("avx512bw"), avx2 = __builtin_cpu_supports("avx2");
  while (!shared.stop) {
    constexpr uint64_t kValue = 0x0123456789abcdef;
    if ((avx512 && !keeps_avx512(kValue)) || (avx2 && !keeps_avx(kValue)) || !nothing_is_blocked()) ++shared.wrong;
    if (tiles && !keeps_tile(static_cast<uint8_t>(shared.computed))) ++shared.wrong;
    double sum = 0;
    for (int i = 1; i <= 20'000; ++i) sum += std::sqrt(static_cast<double>(i)) * 1.25;
    static const double expected = sum;
    if (sum != expected) ++shared.wrong;
    ++shared.computed;
  }
}

[[noreturn]] void run_job(Shared& shared) {
  for (int fd = 3; fd < 1024; ++fd) ::close(fd);  // what the test's own starter left open
  ::setgid(kNobody);
  ::setuid(kNobody);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // forgotten at the change of user
  const bool has_tiles = ask_for_tiles();
  std::vector<std::thread> threads;
  for (const bool tiles : {false, true}) threads.emplace_back([&, tiles] { calculate(shared, tiles && has_tiles); });
  threads.emplace_back([&] {
    while (!shared.stop) {
      const timespec time{0, 2'000'000};
      if (::nanosleep(&time, nullptr) != 0) ++shared.wrong;
      ++shared.slept;
    }
  });
  for (auto& thread : threads) thread.join();
  ::_exit(shared.wrong == 0 ? 0 : 1);
}

void take_version(const SessionConfig& config, pid_t job) {
  try {
    Session(config, {{job, 0}}).checkpoint();
  } catch (const Error& error) {
    dprintf(2, "agent: %s\n", error.what());
    ::_exit(1);
  }
}

[[noreturn]] void run_agent(const SessionConfig& config, pid_t job, Shared& shared) {
  try {
    Session session(config, {{job, 0}});
    for (;; ++shared.versions) session.checkpoint();
  } catch (const Error& error) {
    dprintf(2, "agent: %s\n", error.what());
    ::_exit(1);
  }
}

// A job under way, and how its versions are taken.
class AgentDeath : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ASSERT_EQ(::chown(directory_.path().c_str(), kNobody, kNobody), 0);
    job = ::fork();
    if (job == 0) run_job(shared);
    while (shared.computed == 0 || shared.slept == 0) ::usleep(1'000);
    config.image_path = directory_.path() + "/image";
    config.identity = {kNobody, kNobody, {}};
    config.node = "here";
    config.outer = outer_streams_of(job, 0, true);
  }

  // Every thread gets somewhere, and none has found anything changed.
  void expect_progress() {
    const uint64_t computed = shared.computed, slept = shared.slept;
    for (int i = 0; i < 5000 && (shared.computed < computed + 4 || shared.slept == slept); ++i) ::usleep(1'000);
    ASSERT_GT(shared.computed, computed + 3);
    ASSERT_GT(shared.slept, slept);
    ASSERT_EQ(shared.wrong, 0u);
  }

  void expect_good_end() {
    shared.stop = true;
    int status = 0;
    ASSERT_EQ(::waitpid(job, &status, 0), job);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    const ImageDir image = ImageDir::open(config.image_path, config.identity, "here");
    ASSERT_TRUE(image.latest().has_value());
    EXPECT_THAT(image.verify(*image.latest()), ::testing::IsEmpty());
  }

  Shared& shared =
      *new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared{};
  pid_t job = 0;
  SessionConfig config;

 private:
  TempDir directory_;
};

TEST_F(AgentDeath, TheJobGoesOnAndTheLastVersionIsWhole) {
  std::minstd_rand random(20261122);
  for (int round = 0; round < kRounds; ++round) {
    const pid_t agent = ::fork();
    if (agent == 0) run_agent(config, job, shared);
    // The first one gets a version done, however busy the machine is.
    for (int i = 0; round == 0 && i < 6000 && shared.versions == 0; ++i) ::usleep(10'000);
    ::usleep(std::uniform_int_distribution<useconds_t>(1'000, 60'000)(random));
    ::kill(agent, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(agent, &status, 0), agent);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the agent gave up by itself in round " << round;
    ASSERT_NO_FATAL_FAILURE(expect_progress()) << "round " << round;
  }
  expect_good_end();
}

// Whatever it was about to do: no register, no signal mask, no descriptor of the threads is left changed. Every call in
// turn with ICP_EVERY_CALL=1 in the environment (some minutes).
TEST_F(AgentDeath, AtAnySystemCallChangesNothing) {
  const int step = std::getenv("ICP_EVERY_CALL") != nullptr ? 1 : 7;
  for (int call = 1;; call += step) {
    const bool done = killed_at(call, [&] { take_version(config, job); });
    ASSERT_NO_FATAL_FAILURE(expect_progress()) << "before call " << call;
    if (done) break;
  }
  expect_good_end();
}

// A job that is stopped just when its agent dies keeps threads in the middle of the agent's calls. A version of that
// could not be restored: the code of those calls is not part of it.
TEST_F(AgentDeath, AThreadOnItsWayBackIsNotSaved) {
  const std::vector<MapsEntry> maps = MapsEntry::read(job);
  const auto vdso =
      std::find_if(maps.begin(), maps.end(), [](const MapsEntry& entry) { return entry.path == "[vdso]"; });
  ASSERT_NE(vdso, maps.end());
  int refused = 0;
  for (int call = 100; !HasFatalFailure(); call += 17) {
    const bool done = killed_at(
        call, [&] { take_version(config, job); }, [&] { ::kill(job, SIGSTOP); });
    const pid_t next = ::fork();
    if (next == 0) {
      take_version(config, job);
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(next, &status, 0), next);
    if (status == 0) {
      const ImageDir image = ImageDir::open(config.image_path, config.identity, "here");
      const pb::Capsule capsule = image.open_version(*image.latest()).read_state();
      for (const pb::Thread& thread : capsule.processes(0).threads()) {
        user_regs_struct regs{};
        ASSERT_EQ(thread.gpr().copy(reinterpret_cast<char*>(&regs), sizeof regs), sizeof regs);
        EXPECT_FALSE(vdso->end - kCallStubBytes <= regs.rip && regs.rip < vdso->end) << "before call " << call;
      }
    } else {
      ++refused;
    }
    ::kill(job, SIGCONT);
    ASSERT_NO_FATAL_FAILURE(expect_progress()) << "before call " << call;
    if (done) break;
  }
  EXPECT_GT(refused, 0);
  expect_good_end();
}

}  // namespace
}  // namespace icp::test
