// SPDX-License-Identifier: GPL-2.0-or-later
// What icp history makes of icpctld's answers.
#include "coordinator/icp/history_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace icp {
namespace {

using testing::HasSubstr;
using testing::Not;

net::RunRecord run_of(uint32_t restarts, uint64_t began, uint64_t ended, const char* why, uint64_t taken_ms = 0) {
  net::RunRecord run;
  run.set_job(12);
  run.set_restarts(restarts);
  run.set_began_unix_ms(began);
  run.set_ended_unix_ms(ended);
  run.set_why(why);
  run.set_versions(taken_ms == 0 ? 0 : 3);
  run.set_last_taken_unix_ns(taken_ms * 1'000'000);
  return run;
}

TEST(HistoryText, WorkIsLostFromTheLastVersionOn) {
  EXPECT_EQ(work_lost_ms(run_of(0, 1000, 61'000, "NODE_FAIL", 58'500)), 2500u);
  EXPECT_EQ(work_lost_ms(run_of(0, 1000, 61'000, "NODE_FAIL")), 60'000u);  // no version: all of it
  EXPECT_EQ(work_lost_ms(run_of(0, 1000, 61'000, "requeued", 61'020)), 0u);
  EXPECT_EQ(work_lost_ms(run_of(0, 1000, 61'000, "COMPLETED", 58'500)), std::nullopt);
  EXPECT_EQ(work_lost_ms(run_of(0, 1000, 0, "", 58'500)), std::nullopt);  // it runs
  net::RunRecord held = run_of(0, 1000, 61'000, "requeued", 58'500);
  held.set_ended_with_version(true);
  EXPECT_EQ(work_lost_ms(held), 0u);  // it has not run since
  net::RunRecord failed = run_of(0, 1000, 61'000, "cannot restart");
  failed.set_restart_failed(true);
  EXPECT_EQ(work_lost_ms(failed), std::nullopt);  // it has done nothing
}

TEST(HistoryText, OneLineForEachRunAndTheirSum) {
  net::Reply reply;
  *reply.add_runs() = run_of(0, 1'800'000'000'000, 1'800'000'060'000, "node n1 was \033[31mdrained", 1'800'000'059'000);
  *reply.add_runs() = run_of(1, 1'800'000'070'000, 1'800'000'080'000, "");
  *reply.add_runs() = run_of(2, 1'800'000'090'000, 0, "");
  const std::string text = history_text(reply, 1'800'000'100'000);
  EXPECT_THAT(text, HasSubstr("drained\n"));
  EXPECT_THAT(text, Not(HasSubstr("\033")));
  EXPECT_THAT(text, HasSubstr("not known why\n"));
  EXPECT_THAT(text, HasSubstr("runs\n"));
  EXPECT_THAT(text, HasSubstr("3 runs, 3 versions, "));
  const nlohmann::json json = history_json(reply);
  ASSERT_EQ(json.size(), 3u);
  EXPECT_EQ(json[0]["work_lost_ms"], 1000);
  EXPECT_EQ(json[1]["work_lost_ms"], 10'000);
  EXPECT_TRUE(json[2]["work_lost_ms"].is_null());
}

}  // namespace
}  // namespace icp
