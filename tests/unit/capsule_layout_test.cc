// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/capsule_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/error.h"

namespace icp {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<CapsulePart> image(std::vector<std::set<int>> ranks) {
  std::vector<CapsulePart> parts;
  for (auto& some : ranks) {
    CapsulePart& part = parts.emplace_back();
    part.name = "n" + std::to_string(parts.size());
    part.ranks = std::move(some);
  }
  return parts;
}

std::vector<std::string> here(const std::vector<CapsulePart>& all, const std::set<int>& ranks) {
  std::vector<std::string> names;
  for (const CapsulePart& part : capsules_here(all, "/image", ranks)) names.push_back(part.name);
  return names;
}

std::string refusal(const std::vector<CapsulePart>& all, const std::set<int>& ranks) {
  try {
    capsules_here(all, "/image", ranks);
    return {};
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
}

TEST(CapsuleLayout, OneOrSeveral) {
  const auto all = image({{0, 1}, {2, 3}, {4}});
  EXPECT_THAT(here(all, {2, 3}), ElementsAre("n2"));
  EXPECT_THAT(here(all, {0, 1, 2, 3}), ElementsAre("n1", "n2"));
  EXPECT_THAT(here(all, {0, 1, 4}), ElementsAre("n1", "n3"));
  EXPECT_THAT(here(all, {0, 1, 2, 3, 4}), ElementsAre("n1", "n2", "n3"));
}

TEST(CapsuleLayout, APartOfACapsuleIsRefused) {
  const auto all = image({{0, 1}, {2, 3, 4, 7}});
  for (const std::set<int>& wrong : {std::set{0}, {0, 2}, {0, 1, 2}, {2, 3, 4}, {0, 1, 2, 3, 4, 7, 8}, {9}}) {
    EXPECT_THAT(refusal(all, wrong),
                AllOf(HasSubstr("/image holds tasks 0-1 on n1, 2-4,7 on n2; a node here has tasks"),
                      HasSubstr("srun -N2 -n6")));
  }
}

TEST(CapsuleLayout, AnImageOfOneNode) {
  EXPECT_EQ(refusal(image({{0, 1}}), {0, 1, 2}), "/image holds 2 tasks, this step has 3; start it with srun -n2");
  EXPECT_EQ(refusal(image({{0}}), {0, 1}), "/image holds 1 task, this step has 2; start it with srun -n1");
}

TEST(CapsuleLayout, HostileRanks) {
  EXPECT_NE(refusal(image({{}, {0}}), {1}), "");
  EXPECT_THAT(here(image({{}, {0}}), {0}), ElementsAre("n2"));
  EXPECT_NE(refusal(image({{0, 1}, {1, 2}}), {0, 1, 2}), "");  // a task twice
}

TEST(CapsuleLayout, ManyNodesAreNotAllNamed) {
  std::vector<std::set<int>> ranks;
  for (int i = 0; i < 1000; i++) ranks.push_back({i});
  EXPECT_LT(refusal(image(ranks), {1, 1001}).size(), 500u);
}

}  // namespace
}  // namespace icp
