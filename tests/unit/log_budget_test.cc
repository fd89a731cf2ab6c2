// SPDX-License-Identifier: GPL-2.0-or-later
// How much a user's process may have written into root's log; numbers that are kept while something is done with them.
#include "coordinator/log_budget.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "coordinator/icpstepd/kept_number.h"
#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"
#include "engine/broker/child_call.h"

namespace icp {
namespace {

using namespace std::chrono_literals;

TEST(LogBudget, EndsAFloodAndLetsSomeThroughLater) {
  LogBudget budget;
  const auto begin = LogBudget::Clock::now();
  int64_t written = 0;
  for (int i = 0; i < 100'000; i++)
    if (budget.take(100, begin)) written += 164;
  EXPECT_LE(written, LogBudget::kBurst);
  EXPECT_GT(written, LogBudget::kBurst / 2);
  int64_t later = 0;
  for (int second = 1; second <= 1000; second++)
    for (int i = 0; i < 100; i++)
      if (budget.take(100, begin + second * 1s)) later += 164;
  EXPECT_LE(later, 1000 * LogBudget::kPerSecond);
  EXPECT_GT(later, 500 * LogBudget::kPerSecond);
}

TEST(LogBudget, CountsWhatIsLeftOut) {
  LogBudget budget;
  const auto begin = LogBudget::Clock::now();
  EXPECT_TRUE(budget.take(LogBudget::kBurst - LogBudget::kOfLine, begin));
  EXPECT_EQ(budget.lost(), 0u);
  EXPECT_FALSE(budget.take(1, begin));
  EXPECT_FALSE(budget.take(1, begin));
  EXPECT_EQ(budget.lost(), 2u);
  EXPECT_TRUE(budget.take(1, begin + 1h));
  EXPECT_EQ(budget.lost(), 0u);
}

TEST(KeptNumber, IsKeptThoughTheParentWaits) {
  int go[2];
  ASSERT_EQ(::pipe2(go, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char byte;
    ::_exit(::read(go[0], &byte, 1) == 1 ? 7 : 8);
  }
  // The child's parent, this process, cannot wait for it while its number is in use.
  const pid_t parent = ::getpid();
  with_kept_number(child, [&] {
    if (::write(go[1], "g", 1) != 1) throw_errno("cannot write");
    for (int i = 0; i < 1000 && ProcStat::read(child).state != 'Z'; i++) ::usleep(1000);
    const ProcStat stat = ProcStat::read(child);
    if (stat.state != 'Z' || stat.ppid != parent) throw_error(ErrorKind::kSystem, "it is {}", stat.state);
  });
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_THROW(with_kept_number(child, [] {}), Error);  // it has ended
  ::close(go[0]);
  ::close(go[1]);
}

TEST(ChildCall, AnswersInTimeOrNotAtAll) {
  const auto answer = ask_in_child([] { return std::move(Message().put<int>(7)); }, 10'000);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(MessageReader(*answer).take<int>(), 7);
  const UniqueFd file(::memfd_create("child", 0));
  const int channel = ::fcntl(file.get(), F_DUPFD, 100);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(ask_in_child(
      []() -> Message {
        for (;;) ::pause();
      },
      50));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
  // Descriptors of this process are not the child's.
  const auto seen =
      ask_in_child([channel] { return std::move(Message().put<int>(::fcntl(channel, F_GETFD))); }, 10'000);
  ASSERT_TRUE(seen.has_value());
  EXPECT_EQ(MessageReader(*seen).take<int>(), -1);
  ::close(channel);
  EXPECT_THROW(ask_in_child([]() -> Message { throw_error(ErrorKind::kBusy, "busy"); }, 10'000), Error);
}

}  // namespace
}  // namespace icp
