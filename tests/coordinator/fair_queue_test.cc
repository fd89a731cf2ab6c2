// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/fair_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>

namespace icp {
namespace {

using std::chrono::milliseconds;

TEST(FairQueue, UsersTakeTurns) {
  boost::asio::io_context io;
  const auto more_to_come = boost::asio::make_work_guard(io);
  FairQueue queue(io);
  std::vector<uid_t> order;
  const auto ask = [&](uid_t user) {
    queue.run(
        user, [] {}, [&order, user](const std::string&) { order.push_back(user); });
  };
  for (int i = 0; i < 100; i++) ask(1);
  ask(2);
  ask(3);
  ask(2);
  while (order.size() < 103) io.run_one();
  // One of user 1 was under way when the others came.
  EXPECT_THAT(std::vector<uid_t>(order.begin(), order.begin() + 7), testing::ElementsAre(1, 1, 2, 3, 1, 2, 1));
}

TEST(FairQueue, WorkIsDoneElsewhereAndItsErrorsAreTold) {
  boost::asio::io_context io;
  const auto more_to_come = boost::asio::make_work_guard(io);
  FairQueue queue(io);
  std::thread::id where;
  std::vector<std::string> told;
  const auto tell = [&told](const std::string& why) { told.push_back(why); };
  queue.run(
      1, [&where] { where = std::this_thread::get_id(); }, tell);
  queue.run(
      1, [] { throw std::runtime_error("no disk"); }, tell);
  while (told.size() < 2) io.run_one();
  EXPECT_NE(where, std::this_thread::get_id());
  EXPECT_THAT(told, testing::ElementsAre("", "no disk"));
}

TEST(UserBudget, ABurstThenASteadyRateThenARefusal) {
  UserBudget budget;
  const UserBudget::Clock::time_point now{};
  for (int i = 0; i <= UserBudget::kBurst; i++) EXPECT_EQ(budget.take(7, now), milliseconds(0)) << i;
  EXPECT_EQ(budget.take(7, now), UserBudget::kEvery);
  EXPECT_EQ(budget.take(7, now), 2 * UserBudget::kEvery);
  EXPECT_EQ(budget.take(8, now), milliseconds(0)) << "another user's own";
  int more = 0;
  while (budget.take(7, now)) more++;
  EXPECT_EQ(more, UserBudget::kPatience / UserBudget::kEvery - 2);
  // What was refused is not held against the user.
  for (int i = 0; i < 1000; i++) EXPECT_FALSE(budget.take(7, now));
  EXPECT_EQ(budget.take(7, now + UserBudget::kEvery), UserBudget::kPatience);
  EXPECT_EQ(budget.take(7, now + std::chrono::hours(1)), milliseconds(0));
  for (uid_t user = 100; user < 5000; user++) EXPECT_TRUE(budget.take(user, now + std::chrono::hours(2)));
}

}  // namespace
}  // namespace icp
