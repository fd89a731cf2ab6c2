// SPDX-License-Identifier: GPL-2.0-or-later
// Whether a step goes on from its image after a requeue.
#include "coordinator/icpstepd/image_choice.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "engine/image/image_dir.h"
#include "image_test_support.h"
#include "temp_dir.h"

namespace icp {
namespace {

class ImageChoice : public testing::Test {
 protected:
  ImageChoice() {
    facts.job = 7;
    facts.uid = ::geteuid();
    facts.gid = ::getegid();
    facts.interval = "10";
  }
  // A version that these nodes took together.
  void commit(const std::vector<std::string>& nodes, uint32_t version = 1) {
    for (const std::string& node : nodes) {
      VersionWriter writer = ImageDir::create(image, identity_of(facts), node).begin_version(version);
      pb::Manifest manifest;
      for (const std::string& all : nodes) manifest.mutable_job()->add_nodes(all);
      writer.commit(manifest);
    }
  }
  void ended(const std::string& capsule, uint32_t capsules = 2) {
    facts.capsule = capsule;
    facts.capsules = capsules;
    mark_completed(image, facts);
  }
  StartPlan::Kind kind() { return plan_start(facts, image, "/", 1).kind; }

  test::TempDir temp;
  std::string image = temp.path() + "/7.0";
  protocol::StepFacts facts;
};

TEST_F(ImageChoice, AStepHasEndedWhenAllItsCapsulesHave) {
  commit({"n1", "n2"});
  EXPECT_EQ(kind(), StartPlan::kRestart);
  ended("n1");
  EXPECT_EQ(kind(), StartPlan::kRestart);  // the other node died
  ended("n2");
  EXPECT_EQ(kind(), StartPlan::kFresh);
  unmark_completed(image, identity_of(facts));
  EXPECT_EQ(kind(), StartPlan::kRestart);
}

TEST_F(ImageChoice, AScriptWhoseLaunchedStepWasKilledHasNotCompleted) {
  commit({"n1", "n2.launch1"});
  mark_cut(image, "n2.launch1", identity_of(facts));
  ended("n1", 1);
  EXPECT_EQ(kind(), StartPlan::kRestart);
  unmark_completed(image, identity_of(facts));  // the next one begins
  ended("n1", 1);
  EXPECT_EQ(kind(), StartPlan::kFresh);
}

TEST_F(ImageChoice, OneCapsule) {
  commit({"n1"});
  ended("n1", 1);
  EXPECT_EQ(kind(), StartPlan::kFresh);
}

TEST_F(ImageChoice, NoMarksWithoutAnImage) {
  ended("n1");
  ended("n1", 1);
  EXPECT_FALSE(std::filesystem::exists(image));
  EXPECT_EQ(kind(), StartPlan::kFresh);
}

TEST_F(ImageChoice, VacatedElsewhere) {
  const std::string own = image;
  facts.interval.clear();
  image = temp.path() + "/elsewhere/7.0";
  std::filesystem::create_directory(temp.path() + "/elsewhere");
  commit({"n1"}, 5);
  mark_vacated(own, identity_of(facts), image);
  const StartPlan plan = plan_start(facts, own, "/", 1);
  EXPECT_EQ(plan.kind, StartPlan::kRestart);
  EXPECT_EQ(plan.image, image);
  EXPECT_EQ(plan.versions, std::vector<uint32_t>{5});
  unmark_vacated(own, identity_of(facts));
  EXPECT_EQ(plan_start(facts, own, "/", 1).kind, StartPlan::kFresh);
}

}  // namespace
}  // namespace icp
