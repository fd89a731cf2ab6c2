// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/round.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace icp {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr RoundLimits kLimits{milliseconds(1000), milliseconds(200), milliseconds(3000)};
constexpr net::Phase kPhases[] = {net::PREPARE, net::STOP, net::COLLECT, net::WRITE, net::COMMIT};

// A round of version 7, and what it sent.
struct Fixture {
  explicit Fixture(std::set<std::string> nodes = {"a", "b", "c"}, bool kill = false)
      : names(nodes), round(42, 7, nodes, kill, kLimits, [this](const std::string& node, const net::ToPeer& message) {
          sent.emplace_back(node, message);
        }) {
    round.begin();
  }

  net::PhaseDone message(net::Phase phase) const {
    net::PhaseDone done;
    done.set_round(42);
    done.set_phase(phase);
    if (phase == net::COMMIT) {
      net::VersionNumbers& numbers = *done.mutable_numbers();
      numbers.set_version(7);
      numbers.set_bytes(100);
      numbers.set_processes(2);
      numbers.set_full(true);
    }
    return done;
  }
  void say(const std::string& node, net::Phase phase) { round.done(node, message(phase)); }
  void all_say(net::Phase phase) {
    for (const std::string& node : names) say(node, phase);
  }
  // Until everybody is asked for `phase`.
  void reach(net::Phase phase) {
    for (const net::Phase before : kPhases) {
      if (before == phase) break;
      all_say(before);
    }
    EXPECT_EQ(round.phase(), phase);
    sent.clear();
  }
  // Each node was told to give up, with this reason.
  void expect_aborted(const std::string& reason) const {
    EXPECT_TRUE(round.over());
    EXPECT_FALSE(round.result().committed);
    EXPECT_THAT(round.result().error, HasSubstr(reason));
    std::set<std::string> told;
    for (const auto& [node, out] : sent) {
      if (!out.has_abort()) continue;
      EXPECT_EQ(out.abort().round(), 42u);
      EXPECT_EQ(out.abort().reason(), round.result().error);
      told.insert(node);
    }
    EXPECT_EQ(told, names);
  }

  std::set<std::string> names;
  std::vector<std::pair<std::string, net::ToPeer>> sent;
  Round round;
};

TEST(Round, BeginNamesEverybodyAndTheLimits) {
  const Fixture f;
  ASSERT_EQ(f.sent.size(), 3u);
  for (const auto& [node, out] : f.sent) {
    EXPECT_EQ(out.begin().round(), 42u);
    EXPECT_EQ(out.begin().version(), 7u);
    EXPECT_EQ(out.begin().nodes_size(), 3);
    EXPECT_FALSE(out.begin().alone());
    EXPECT_FALSE(out.begin().kill());
    EXPECT_EQ(out.begin().stop_timeout_ms(), 400u);  // longer than the coordinator's own
  }
}

TEST(Round, NobodyGoesOnBeforeEverybodyIsThrough) {
  Fixture f;
  const net::Phase order[] = {net::PREPARE, net::STOP, net::COLLECT, net::WRITE, net::COMMIT};
  for (size_t i = 0; i < std::size(order); i++) {
    EXPECT_EQ(f.round.phase(), order[i]);
    f.sent.clear();
    f.say("a", order[i]);
    f.say("b", order[i]);
    EXPECT_TRUE(f.sent.empty());
    EXPECT_FALSE(f.round.over());
    f.say("c", order[i]);
    if (i + 1 == std::size(order)) break;
    ASSERT_EQ(f.sent.size(), 3u);
    for (const auto& [node, out] : f.sent) {
      EXPECT_EQ(out.go().round(), 42u);
      EXPECT_EQ(out.go().phase(), order[i + 1]);
    }
  }
  EXPECT_TRUE(f.round.over());
  EXPECT_TRUE(f.round.result().committed);
  EXPECT_TRUE(f.round.result().error.empty());
  EXPECT_TRUE(f.sent.empty());
  EXPECT_EQ(f.round.result().numbers.version(), 7u);
  EXPECT_EQ(f.round.result().numbers.bytes(), 300u);
  EXPECT_EQ(f.round.result().numbers.processes(), 6u);
  EXPECT_TRUE(f.round.result().numbers.full());
}

TEST(Round, NumbersAreSumsAndLongestTimes) {
  Fixture f({"a", "b"});
  f.reach(net::COMMIT);
  net::PhaseDone first = f.message(net::COMMIT), second = f.message(net::COMMIT);
  first.mutable_numbers()->set_stop_ns(5);
  first.mutable_numbers()->set_total_ns(90);
  second.mutable_numbers()->set_stop_ns(8);
  second.mutable_numbers()->set_total_ns(70);
  second.mutable_numbers()->set_full(false);
  f.round.done("a", first);
  f.round.done("b", second);
  EXPECT_EQ(f.round.result().numbers.stop_ns(), 8u);
  EXPECT_EQ(f.round.result().numbers.total_ns(), 90u);
  EXPECT_FALSE(f.round.result().numbers.full());  // one of them needs an older version
}

TEST(Round, SingleNodeDoesEverythingInOneGo) {
  Fixture f({"a"});
  ASSERT_EQ(f.sent.size(), 1u);
  EXPECT_TRUE(f.sent[0].second.begin().alone());
  EXPECT_EQ(f.round.limit(), milliseconds(4200));
  f.say("a", net::COMMIT);
  EXPECT_TRUE(f.round.result().committed);
}

class EachPhase : public testing::TestWithParam<net::Phase> {};

TEST_P(EachPhase, AnErrorOfOneNodeAbortsAll) {
  Fixture f;
  f.reach(GetParam());
  net::PhaseDone failed = f.message(GetParam());
  failed.clear_numbers();
  failed.set_error("disk full");
  failed.set_hint("make room");
  failed.set_transient(true);
  failed.set_highest_version(11);
  f.round.done("b", failed);
  f.expect_aborted("b: disk full");
  EXPECT_EQ(f.round.result().hint, "make room");
  EXPECT_TRUE(f.round.result().transient);
  EXPECT_FALSE(f.round.result().timed_out);
  EXPECT_EQ(f.round.highest_version(), 11u);
}

TEST_P(EachPhase, ALostAgentAbortsAll) {
  Fixture f;
  f.reach(GetParam());
  f.say("a", GetParam());
  f.round.lost("c", "connection reset");
  f.expect_aborted("the agent on c is gone: connection reset");
  EXPECT_TRUE(f.round.result().transient);
}

TEST_P(EachPhase, TimeOutNamesWhoIsMissing) {
  Fixture f;
  f.reach(GetParam());
  f.say("b", GetParam());
  f.round.time_out();
  f.expect_aborted("a, c took longer than");
  EXPECT_TRUE(f.round.result().timed_out);
  const bool stopped = GetParam() == net::STOP || GetParam() == net::COLLECT;
  EXPECT_THAT(f.round.result().error, HasSubstr(GetParam() == net::PREPARE ? "1000 ms to look"
                                                : stopped                  ? "200 ms to stop"
                                                                           : "3000 ms to "));
}

TEST_P(EachPhase, OutOfTurnAborts) {
  for (const net::Phase wrong :
       {net::NONE, net::PREPARE, net::STOP, net::COLLECT, net::WRITE, net::COMMIT, net::FINISH}) {
    if (wrong == GetParam()) continue;
    Fixture f;
    f.reach(GetParam());
    f.say("a", wrong);
    f.expect_aborted("a sent an unexpected phase message");
  }
}

TEST_P(EachPhase, TwiceTheSameAborts) {
  Fixture f;
  f.reach(GetParam());
  f.say("a", GetParam());
  f.say("a", GetParam());
  f.expect_aborted("a sent an unexpected phase message");
}

TEST_P(EachPhase, OtherRoundsAndStrangersAreLeftAlone) {
  Fixture f;
  f.reach(GetParam());
  net::PhaseDone other = f.message(GetParam());
  other.set_round(41);
  other.set_error("of an older round");
  f.round.done("a", other);
  f.say("stranger", GetParam());
  f.round.lost("stranger", "gone");
  net::Survey survey;
  survey.set_round(41);
  f.round.survey("a", survey);
  survey.set_round(42);
  f.round.survey("stranger", survey);
  EXPECT_TRUE(f.sent.empty());
  EXPECT_FALSE(f.round.over());
  f.all_say(GetParam());
  EXPECT_NE(f.round.phase() == GetParam(), !f.round.over());
}

TEST_P(EachPhase, NothingMovesARoundThatIsOver) {
  Fixture f;
  f.reach(GetParam());
  f.round.give_up("cancelled");
  f.expect_aborted("cancelled");
  f.sent.clear();
  f.all_say(GetParam());
  f.round.lost("a", "late");
  f.round.time_out();
  f.round.give_up("again");
  EXPECT_TRUE(f.sent.empty());
  EXPECT_EQ(f.round.result().error, "cancelled");
}

INSTANTIATE_TEST_SUITE_P(Round, EachPhase, testing::ValuesIn(kPhases),
                         [](const auto& phase) { return net::Phase_Name(phase.param); });

// ---- rounds that kill ------------------------------------------------------------------------------

TEST(RoundThatKills, WaitsOnceAllHaveCommitted) {
  Fixture f({"a", "b"}, true);
  EXPECT_TRUE(f.sent[0].second.begin().kill());
  f.reach(net::COMMIT);
  f.say("a", net::COMMIT);
  EXPECT_FALSE(f.round.may_kill());
  f.say("b", net::COMMIT);
  EXPECT_TRUE(f.round.may_kill());
  EXPECT_FALSE(f.round.over());
  EXPECT_TRUE(f.sent.empty());
  f.round.finish_kill();
  ASSERT_EQ(f.sent.size(), 2u);
  EXPECT_EQ(f.sent[0].second.go().phase(), net::FINISH);
  EXPECT_TRUE(f.round.over());
  EXPECT_TRUE(f.round.result().committed);
  EXPECT_FALSE(f.round.may_kill());
}

// The version is on disk on all nodes: whatever happens before the kill, it stays, and the processes run on.
class AfterAllCommitted : public testing::Test {
 protected:
  AfterAllCommitted() : f({"a", "b"}, true) {
    f.reach(net::COMMIT);
    f.all_say(net::COMMIT);
  }
  void expect_given_up(const std::string& reason) const {
    EXPECT_TRUE(f.round.over());
    EXPECT_TRUE(f.round.result().committed);
    EXPECT_THAT(f.round.result().error, HasSubstr(reason));
    ASSERT_EQ(f.sent.size(), 2u);
    EXPECT_TRUE(f.sent[0].second.has_abort());
  }
  Fixture f;
};

TEST_F(AfterAllCommitted, SlurmRefuses) {
  f.round.give_up("slurmctld does not cancel the job");
  expect_given_up("slurmctld does not cancel the job");
}

TEST_F(AfterAllCommitted, AgentLost) {
  f.round.lost("b", "connection reset");
  expect_given_up("the agent on b is gone");
}

TEST_F(AfterAllCommitted, TimeOut) {
  f.round.time_out();
  expect_given_up("the job was not ended within 3000 ms");
  EXPECT_TRUE(f.round.result().timed_out);
}

TEST(RoundThatKills, GivenUpBeforeAllHaveCommitted) {
  Fixture f({"a", "b"}, true);
  f.reach(net::COMMIT);
  f.say("a", net::COMMIT);
  f.round.give_up("another step failed");
  f.expect_aborted("another step failed");
}

// ---- connections between nodes -------------------------------------------------------------------------

net::ConnectionEnd end(const std::string& local, uint32_t local_port, const std::string& remote, uint32_t remote_port) {
  net::ConnectionEnd out;
  out.set_local_ip(local);
  out.set_local_port(local_port);
  out.set_remote_ip(remote);
  out.set_remote_port(remote_port);
  return out;
}

TEST(Round, SurveyIsAnsweredWhenAllHaveAsked) {
  Fixture f({"a", "b"});
  f.sent.clear();
  net::Survey of_a, of_b;
  of_a.set_round(42);
  of_b.set_round(42);
  *of_a.add_ends() = end("AAAA", 1, "BBBB", 2);
  *of_a.add_ends() = end("AAAA", 3, "XXXX", 4);  // leads out of the step
  *of_b.add_ends() = end("BBBB", 2, "AAAA", 1);
  f.round.survey("a", of_a);
  EXPECT_TRUE(f.sent.empty());
  f.round.survey("b", of_b);
  ASSERT_EQ(f.sent.size(), 2u);
  ASSERT_EQ(f.sent[0].first, "a");
  ASSERT_EQ(f.sent[0].second.survey().ends_size(), 1);
  EXPECT_EQ(f.sent[0].second.survey().ends(0).local_ip(), "BBBB");
  // Asked again, it is answered at once, and only who asked.
  f.sent.clear();
  f.round.survey("a", of_a);
  ASSERT_EQ(f.sent.size(), 1u);
  EXPECT_EQ(f.sent[0].first, "a");
}

TEST(Round, CollectCarriesTheOtherEnds) {
  Fixture f({"a", "b"});
  f.all_say(net::PREPARE);
  f.sent.clear();
  net::PhaseDone of_a = f.message(net::STOP), of_b = of_a;
  *of_a.add_ends() = end("AAAA", 1, "BBBB", 2);
  *of_b.add_ends() = end("BBBB", 2, "AAAA", 1);
  of_b.mutable_ends(0)->set_received(77);
  f.round.done("a", of_a);
  f.round.done("b", of_b);
  ASSERT_EQ(f.sent.size(), 2u);
  ASSERT_EQ(f.sent[0].second.go().ends_size(), 1);
  EXPECT_EQ(f.sent[0].second.go().ends(0).received(), 77u);
  EXPECT_EQ(f.sent[1].second.go().ends(0).local_ip(), "AAAA");
}

}  // namespace
}  // namespace icp
