// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/restart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <utility>
#include <vector>

namespace icp {
namespace {

using testing::HasSubstr;

struct Fixture {
  Restart restart{
      2, [this](const std::string& node, const net::ToPeer& out) { sent.emplace_back(node, out.restart_go()); }};
  std::vector<std::pair<std::string, net::RestartGo>> sent;

  net::RestartReady message(uint32_t phase, uint32_t version = 5) const {
    net::RestartReady ready;
    ready.set_phase(phase);
    if (phase == 1) ready.set_version(version);
    return ready;
  }
  void say(const std::string& node, uint32_t phase) { restart.ready(node, message(phase)); }
  void both_say(uint32_t phase) {
    say("a", phase);
    say("b", phase);
  }
  void expect_failed(const std::string& why, size_t told) const {
    EXPECT_TRUE(restart.over());
    ASSERT_EQ(sent.size(), told);
    for (const auto& [node, go] : sent) EXPECT_THAT(go.error(), HasSubstr(why));
  }
};

TEST(Restart, PhasesInOrder) {
  Fixture f;
  for (uint32_t phase = 1; phase <= 3; phase++) {
    f.sent.clear();
    f.say("b", phase);
    EXPECT_TRUE(f.sent.empty());
    EXPECT_FALSE(f.restart.over());
    f.say("a", phase);
    ASSERT_EQ(f.sent.size(), 2u);
    EXPECT_EQ(f.sent[0].second.phase(), phase);
    EXPECT_TRUE(f.sent[0].second.error().empty());
  }
  EXPECT_TRUE(f.restart.over());
}

TEST(Restart, OfEachKindOfFenceTheHighestNumberGoesToAll) {
  Fixture f;
  f.both_say(1);
  f.both_say(2);
  f.sent.clear();
  net::RestartReady of_a = f.message(3), of_b = f.message(3);
  const auto add = [](net::RestartReady& ready, const std::string& what, uint64_t ended) {
    net::Fence& fence = *ready.add_fences();
    fence.set_what(what);
    fence.set_ended(ended);
  };
  add(of_a, "x", 3), add(of_a, "y", 1);
  add(of_b, "x", 2), add(of_b, "z", 7);
  f.restart.ready("a", of_a);
  f.restart.ready("b", of_b);
  ASSERT_EQ(f.sent.size(), 2u);
  for (const auto& [node, go] : f.sent) {
    std::map<std::string, uint64_t> fences;
    for (const net::Fence& fence : go.fences()) fences[fence.what()] = fence.ended();
    EXPECT_THAT(fences, testing::ElementsAre(std::pair("x", 3), std::pair("y", 1), std::pair("z", 7)));
  }
}

TEST(Restart, AddressesOfAllGoToAllAndEndsToTheirPeers) {
  Fixture f;
  net::RestartReady of_a = f.message(1), of_b = f.message(1);
  of_a.add_addresses()->set_old_ip("AAAA");
  of_b.add_addresses()->set_old_ip("BBBB");
  f.restart.ready("a", of_a);
  f.restart.ready("b", of_b);
  ASSERT_EQ(f.sent.size(), 2u);
  for (const auto& [node, go] : f.sent) EXPECT_EQ(go.addresses_size(), 2);
  f.sent.clear();
  of_a = f.message(2);
  net::ConnectionEnd& end = *of_a.add_ends();
  end.set_local_port(1);
  end.set_remote_port(2);
  of_b = f.message(2);
  net::ConnectionEnd& other = *of_b.add_ends();
  other.set_local_port(2);
  other.set_remote_port(1);
  f.restart.ready("a", of_a);
  f.restart.ready("b", of_b);
  ASSERT_EQ(f.sent.size(), 2u);
  ASSERT_EQ(f.sent[0].second.ends_size(), 1);
  EXPECT_EQ(f.sent[0].second.ends(0).local_port(), 2u);
}

TEST(Restart, DifferentVersionsFail) {
  Fixture f;
  f.restart.ready("a", f.message(1, 5));
  f.restart.ready("b", f.message(1, 6));
  f.expect_failed("the nodes disagree: b would restore version 6, another one version 5", 2);
}

TEST(Restart, OutOfTurnFails) {
  for (const uint32_t wrong : {0u, 2u, 3u, 4u, 4'000'000'000u}) {
    Fixture f;
    f.say("a", wrong);
    f.expect_failed("a sent an unexpected phase message", 1);
  }
  Fixture twice;
  twice.say("a", 1);
  twice.say("a", 1);
  twice.expect_failed("a sent an unexpected phase message", 1);
}

TEST(Restart, LostAgentFailsInEachPhase) {
  for (uint32_t phase = 1; phase <= 3; phase++) {
    Fixture f;
    for (uint32_t before = 1; before < phase; before++) f.both_say(before);
    f.say("a", phase);
    f.sent.clear();
    f.restart.lost("b");
    f.expect_failed("the agent on b is gone", 1);
  }
}

TEST(Restart, AnErrorIsToldToAllAndToTheLate) {
  Fixture f;
  f.say("a", 1);
  net::RestartReady failed = f.message(1);
  failed.set_error("no such image");
  f.restart.ready("b", failed);
  f.expect_failed("b: no such image", 2);
  f.sent.clear();
  f.say("c", 1);
  ASSERT_EQ(f.sent.size(), 1u);
  EXPECT_EQ(f.sent[0].first, "c");
  EXPECT_THAT(f.sent[0].second.error(), HasSubstr("b: no such image"));
}

net::RestartReady in_attempt(net::RestartReady message, uint32_t attempt) {
  message.set_attempt(attempt);
  return message;
}

TEST(Restart, AVersionThatCannotBeRestoredIsFollowedByTheOneBefore) {
  Fixture f;
  f.both_say(1);
  f.sent.clear();
  net::RestartReady failed = f.message(1);
  failed.set_error("a page is damaged");
  failed.set_again(true);
  f.restart.ready("b", failed);
  EXPECT_FALSE(f.restart.over());
  ASSERT_EQ(f.sent.size(), 2u);
  for (const auto& [node, go] : f.sent) {
    EXPECT_TRUE(go.again());
    EXPECT_EQ(go.attempt(), 0u);
    EXPECT_THAT(go.error(), HasSubstr("b: a page is damaged"));
  }
  // One that has not heard of it goes on for a moment, and disturbs nobody.
  f.sent.clear();
  f.restart.ready("b", in_attempt(f.message(1, 4), 1));
  f.say("a", 2);
  ASSERT_EQ(f.sent.size(), 1u);
  EXPECT_EQ(f.sent[0].first, "a");
  EXPECT_TRUE(f.sent[0].second.again());
  f.restart.ready("a", failed);
  EXPECT_EQ(f.sent.size(), 1u);
  f.sent.clear();
  f.restart.ready("a", in_attempt(f.message(1, 4), 1));
  ASSERT_EQ(f.sent.size(), 2u);
  EXPECT_EQ(f.sent[0].second.attempt(), 1u);
  EXPECT_EQ(f.sent[0].second.phase(), 1u);
  for (uint32_t phase = 2; phase <= 3; phase++) {
    f.restart.ready("a", in_attempt(f.message(phase), 1));
    f.restart.ready("b", in_attempt(f.message(phase), 1));
  }
  EXPECT_TRUE(f.restart.over());
  EXPECT_FALSE(f.restart.failed());
}

TEST(Restart, WhenSomeMayRunNoOtherVersionIsTried) {
  Fixture f;
  f.both_say(1);
  f.both_say(2);
  f.sent.clear();
  net::RestartReady failed = f.message(3);
  failed.set_error("no");
  failed.set_again(true);
  f.restart.ready("b", failed);
  f.expect_failed("b: no", 2);
  EXPECT_FALSE(f.sent[0].second.again());
}

TEST(Restart, WhoCannotRestoreAnyVersionEndsItForAll) {
  Fixture f;
  f.say("a", 1);
  net::RestartReady failed = f.message(1);
  failed.set_error("damaged");
  failed.set_again(true);
  f.restart.ready("a", failed);
  failed.set_error("wrong tasks");
  failed.set_again(false);
  f.sent.clear();
  f.restart.ready("b", failed);
  f.expect_failed("b: wrong tasks", 2);
}

TEST(Restart, LostAfterTheEndIsNothing) {
  Fixture f;
  for (uint32_t phase = 1; phase <= 3; phase++) f.both_say(phase);
  f.sent.clear();
  f.restart.lost("a");
  EXPECT_TRUE(f.sent.empty());
}

}  // namespace
}  // namespace icp
