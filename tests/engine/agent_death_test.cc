// SPDX-License-Identifier: GPL-2.0-or-later
// The agent is killed at any moment of a checkpoint: the job goes on, and the last committed version is whole.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "engine/base/error.h"
#include "engine/session.h"
#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

constexpr int kRounds = 60;
constexpr uid_t kNobody = 65534;

struct Shared {
  std::atomic<uint64_t> computed, slept, wrong, versions;
  std::atomic<bool> stop;
};

// Calculates in vector registers, with signals arriving, and notices any register that is not what it was.
void calculate(Shared& shared) {
  while (!shared.stop) {
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
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) threads.emplace_back([&] { calculate(shared); });
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

[[noreturn]] void run_agent(const SessionConfig& config, pid_t job, Shared& shared) {
  try {
    Session session(config, {{job, 0}});
    for (;; ++shared.versions) session.checkpoint();
  } catch (const Error& error) {
    dprintf(2, "agent: %s\n", error.what());
    ::_exit(1);
  }
}

TEST(AgentDeath, TheJobGoesOnAndTheLastVersionIsWhole) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  const TempDir directory;
  ASSERT_EQ(::chown(directory.path().c_str(), kNobody, kNobody), 0);
  auto& shared =
      *new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared{};
  const pid_t job = ::fork();
  if (job == 0) run_job(shared);
  while (shared.computed == 0 || shared.slept == 0) ::usleep(1'000);
  SessionConfig config;
  config.image_path = directory.path() + "/image";
  config.identity = {kNobody, kNobody, {}};
  config.node = "here";
  config.outer = outer_streams_of(job, 0, true);
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
    const uint64_t computed = shared.computed, slept = shared.slept;
    for (int i = 0; i < 500 && (shared.computed == computed || shared.slept == slept); ++i) ::usleep(10'000);
    ASSERT_GT(shared.computed, computed) << "round " << round;
    ASSERT_GT(shared.slept, slept) << "round " << round;
    ASSERT_EQ(shared.wrong, 0u) << "round " << round;
  }
  shared.stop = true;
  int status = 0;
  ASSERT_EQ(::waitpid(job, &status, 0), job);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  const ImageDir image = ImageDir::open(config.image_path, config.identity, "here");
  ASSERT_TRUE(image.latest().has_value());
  EXPECT_THAT(image.verify(*image.latest()), ::testing::IsEmpty());
}

}  // namespace
}  // namespace icp::test
