// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/restore/tree_plan.h"

#include <gtest/gtest.h>

#include <map>

#include "engine/base/error.h"

namespace icp {
namespace {

struct Row {
  uint32_t pid, ppid, pgid, sid;
};

pb::Capsule capsule_of(const std::vector<Row>& rows) {
  pb::Capsule capsule;
  for (const Row& row : rows) {
    pb::Process& process = *capsule.add_processes();
    process.set_pid(row.pid);
    process.set_ppid(row.ppid);
    process.set_pgid(row.pgid);
    process.set_sid(row.sid);
    process.add_threads()->set_tid(row.pid);
  }
  return capsule;
}

// Plays a plan as the kernel would and gives the tree that comes out; helpers that have ended are left out.
std::map<uint32_t, Row> play(const std::vector<TreeStep>& steps) {
  std::map<uint32_t, Row> live{{1, {1, 0, 1, 1}}};
  for (const TreeStep& step : steps) {
    switch (step.kind) {
      case TreeStep::kFork:
      case TreeStep::kForkHelper:
        live[step.pid] = {step.pid, step.by, live.at(step.by).pgid, live.at(step.by).sid};
        break;
      case TreeStep::kForkSibling:
        live[step.pid] = {step.pid, live.at(step.by).ppid, live.at(step.by).pgid, live.at(step.by).sid};
        break;
      case TreeStep::kSetsid:
        live.at(step.pid).sid = live.at(step.pid).pgid = step.pid;
        break;
      case TreeStep::kSetpgid:
        live.at(step.pid).pgid = step.group;
        break;
      case TreeStep::kEndHelper:
        for (auto& [pid, row] : live)
          if (row.ppid == step.pid) row.ppid = 1;
        live.erase(step.pid);
        break;
    }
  }
  live.erase(1);
  return live;
}

void expect_rebuilt(const std::vector<Row>& rows) {
  const std::map<uint32_t, Row> result = play(plan_tree(capsule_of(rows)));
  ASSERT_EQ(result.size(), rows.size());
  for (const Row& row : rows) {
    ASSERT_TRUE(result.contains(row.pid));
    EXPECT_EQ(result.at(row.pid).ppid, row.ppid) << row.pid;
    EXPECT_EQ(result.at(row.pid).pgid, row.pgid) << row.pid;
    EXPECT_EQ(result.at(row.pid).sid, row.sid) << row.pid;
  }
}

TEST(TreePlan, TasksOfAStepWithADeadSessionLeader) {
  expect_rebuilt({{101, 1, 101, 99}, {102, 1, 102, 99}, {103, 102, 102, 99}});
}

TEST(TreePlan, ShellWithJobControlGroups) {
  expect_rebuilt({{10, 1, 10, 10}, {11, 10, 11, 10}, {12, 10, 11, 10}, {13, 10, 13, 10}});
}

TEST(TreePlan, GroupWhoseLeaderHasEnded) { expect_rebuilt({{10, 1, 10, 10}, {12, 10, 11, 10}, {13, 10, 11, 10}}); }

TEST(TreePlan, ChildBornBeforeItsParentsSetsid) {
  expect_rebuilt({{10, 1, 10, 10}, {20, 10, 20, 20}, {21, 20, 10, 10}, {22, 20, 20, 20}});
}

TEST(TreePlan, OrphanInTheSessionOfALivingLeaderDeepInTheTree) {
  expect_rebuilt({{10, 1, 10, 10}, {20, 10, 20, 20}, {30, 1, 20, 20}});
}

TEST(TreePlan, OrphanInTheSessionOfALeaderThatIsInitsChild) { expect_rebuilt({{10, 1, 10, 10}, {30, 1, 10, 10}}); }

TEST(TreePlan, SessionOutsideOfTheNamespaceIsInits) {
  const std::map<uint32_t, Row> result = play(plan_tree(capsule_of({{5, 1, 0, 0}})));
  EXPECT_EQ(result.at(5).sid, 1u);
}

ErrorKind kind_of(const std::vector<Row>& rows) {
  try {
    plan_tree(capsule_of(rows));
  } catch (const Error& error) {
    return error.kind();
  }
  return ErrorKind::kUsage;
}

// What a subreaper has been handed.
TEST(TreePlan, ChildrenOfSessionsThatTheirParentWasNeverIn) {
  expect_rebuilt({{10, 1, 10, 10}, {11, 10, 10, 10}, {12, 11, 77, 77}});
  expect_rebuilt({{10, 1, 10, 10}, {20, 1, 20, 20}, {21, 20, 10, 10}, {22, 20, 30, 30}});
  expect_rebuilt({{10, 1, 10, 10}, {12, 10, 77, 77}, {13, 10, 13, 77}, {14, 12, 77, 77}, {15, 13, 88, 88}});
  expect_rebuilt({{10, 1, 10, 10}, {20, 10, 20, 20}, {21, 10, 21, 20}, {22, 10, 20, 20}, {23, 22, 20, 20}});
}

TEST(TreePlan, WhatNoForkCanRepeatIsRefused) {
  EXPECT_EQ(kind_of({{10, 1, 10, 10}, {20, 1, 20, 20}, {21, 20, 10, 10}, {22, 20, 30, 30}, {23, 1, 30, 30}}),
            ErrorKind::kRefused);
  EXPECT_EQ(kind_of({{10, 1, 10, 10}, {11, 10, 10, 10}, {12, 11, 77, 77}, {13, 10, 77, 77}}), ErrorKind::kRefused);
}

TEST(TreePlan, HostileTreesAreImageErrors) {
  EXPECT_EQ(kind_of({{10, 11, 10, 10}, {11, 10, 10, 10}}), ErrorKind::kImage);  // a cycle
  EXPECT_EQ(kind_of({{10, 99, 10, 10}}), ErrorKind::kImage);                    // a missing parent
  EXPECT_EQ(kind_of({{10, 1, 10, 10}, {10, 1, 10, 10}}), ErrorKind::kImage);    // twice
  EXPECT_EQ(kind_of({{1, 1, 1, 1}}), ErrorKind::kImage);
  EXPECT_EQ(kind_of({{4000000000u, 1, 1, 1}}), ErrorKind::kImage);
}

}  // namespace
}  // namespace icp
