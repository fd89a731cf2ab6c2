// SPDX-License-Identifier: GPL-2.0-or-later
// Steps with agents that are functions: what is sent to them is answered by hand.
#include "coordinator/icpctld/steps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sqlite3.h>

#include <deque>

#include "coordinator/icpctld/slurm_jobs.h"
#include "tests/unit/temp_dir.h"

namespace icp {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

class StepsTest : public testing::Test {
 protected:
  struct Agent {
    std::string node;
    std::shared_ptr<Step> step;
    std::deque<net::ToPeer> inbox;
    uint64_t round = 0;
  };

  StepsTest() {
    config.prepare_timeout = config.stop_timeout = config.write_timeout = milliseconds(60'000);
    config.jitter = 0;
    config.max_writers = 1;
    steps.emplace(io, config, catalog);
  }

  static net::AgentHello hello(uint32_t job, const std::string& node, uint32_t nodes = 1) {
    net::AgentHello out;
    out.set_job(job);
    out.set_uid(1000);
    out.set_node(node);
    out.set_nodes(nodes);
    out.set_image("/image");
    return out;
  }
  std::shared_ptr<Agent> come(const net::AgentHello& message) {
    const auto agent = std::make_shared<Agent>();
    agent->node = message.node();
    std::string why;
    agent->step = steps->agent_came(
        message,
        [agent](const net::ToPeer& out) {
          agent->inbox.push_back(out);
          if (out.has_begin()) agent->round = out.begin().round();
        },
        why);
    EXPECT_TRUE(agent->step) << why;
    agent->inbox.pop_front();  // welcome
    return agent;
  }
  std::string refused(const net::AgentHello& message) {
    std::string why;
    EXPECT_FALSE(steps->agent_came(
        message, [](const net::ToPeer&) {}, why));
    return why;
  }
  void done(const std::shared_ptr<Agent>& agent, net::Phase phase, const std::string& error = {}) {
    net::ToCoordinator message;
    message.mutable_done()->set_round(agent->round);
    message.mutable_done()->set_phase(phase);
    message.mutable_done()->set_error(error);
    steps->agent_said(agent->step, agent->node, message);
  }
  void leave(const std::shared_ptr<Agent>& agent) { steps->agent_left(agent->step, agent->node, "went"); }
  // create() that keeps what came of it.
  struct Outcome {
    bool told = false;
    uint32_t code = 0;
    std::string text;
  };
  std::shared_ptr<Outcome> create(const std::shared_ptr<Agent>& agent, milliseconds max_wait = milliseconds(0)) {
    const auto outcome = std::make_shared<Outcome>();
    VersionRequest wanted;
    wanted.max_wait = max_wait;
    wanted.finished = [outcome](uint32_t code, const std::string& text) { *outcome = {true, code, text}; };
    EXPECT_EQ(steps->create(agent->step, wanted), kSlurmSuccess);
    return outcome;
  }
  void let_pass(milliseconds time) {
    io.restart();
    io.run_for(time);
  }
  size_t committed(uint32_t job) { return catalog.versions({job, 0, 0}, 100).size(); }
  // Another one writes to the catalog, for ever, as far as icpctld can tell.
  struct Blocked {
    explicit Blocked(const std::string& file) {
      sqlite3_open(file.c_str(), &db);
      EXPECT_EQ(sqlite3_exec(db,
                             "CREATE TRIGGER s BEFORE INSERT ON steps BEGIN SELECT RAISE(ABORT, 'disk full'); END;"
                             "CREATE TRIGGER u BEFORE UPDATE ON steps BEGIN SELECT RAISE(ABORT, 'disk full'); END;"
                             "CREATE TRIGGER v BEFORE INSERT ON versions BEGIN SELECT RAISE(ABORT, 'disk full'); END;",
                             nullptr, nullptr, nullptr),
                SQLITE_OK);
    }
    ~Blocked() { sqlite3_close(db); }
    sqlite3* db = nullptr;
  };

  test::TempDir dir;
  boost::asio::io_context io{1};
  Config config;
  Catalog catalog{dir.path()};
  std::optional<Steps> steps;
};

TEST_F(StepsTest, HellosThatMakeNoSense) {
  const auto with = [](auto change) {
    net::AgentHello message = hello(1, "a");
    change(message);
    return message;
  };
  const std::string nonsense = "its hello makes no sense";
  EXPECT_EQ(refused(with([](auto& m) { m.set_job(0); })), nonsense);
  EXPECT_EQ(refused(with([](auto& m) { m.clear_node(); })), nonsense);
  EXPECT_EQ(refused(with([](auto& m) { m.set_node(std::string(257, 'x')); })), nonsense);
  EXPECT_EQ(refused(with([](auto& m) { m.set_image(std::string(4097, 'x')); })), nonsense);
  EXPECT_EQ(refused(with([](auto& m) { m.set_nodes(0); })), nonsense);
  EXPECT_EQ(refused(with([](auto& m) { m.set_nodes(100'001); })), nonsense);
  EXPECT_EQ(refused(with([](auto& m) {
              for (int i = 0; i < 65; i++) m.add_recent();
            })),
            nonsense);
  // Numbers that overflow a clock or the next version's number.
  EXPECT_EQ(refused(with([](auto& m) { m.set_interval_ms(UINT64_MAX); })), nonsense);
  EXPECT_EQ(refused(with([](auto& m) { m.set_interval_ms(1ull << 62); })), nonsense);
  EXPECT_EQ(refused(with([](auto& m) { m.set_highest_version(UINT32_MAX); })), nonsense);
  EXPECT_TRUE(steps->all().empty());
  EXPECT_TRUE(catalog.steps(0, 10).empty());
}

TEST_F(StepsTest, HellosThatContradictOthers) {
  const auto agent = come(hello(1, "a", 2));
  for (int what = 0; what < 3; what++) {
    net::AgentHello other = hello(1, "b", 2);
    if (what == 0) other.set_uid(1001);
    if (what == 1) other.set_nodes(3);
    if (what == 2) other.set_image("/elsewhere");
    EXPECT_EQ(refused(other), "it contradicts other agents of step 1.0");
  }
  EXPECT_EQ(agent->step->agents.size(), 1u);
  EXPECT_EQ(catalog.steps(1, 1)[0].uid, 1000u);
}

TEST_F(StepsTest, ALaunchedStepBelongsToTheScriptsVersions) {
  const auto launched = [](const std::string& node) {
    net::AgentHello message = hello(1, node, 2);
    message.set_launched(1);
    return message;
  };
  const auto script = come(hello(1, "a"));
  create(script);
  EXPECT_TRUE(script->inbox.back().begin().alone());
  done(script, net::COMMIT);
  EXPECT_EQ(committed(1), 1u);

  const auto b = come(launched("b.launch1"));
  EXPECT_EQ(b->step, script->step);
  EXPECT_FALSE(script->step->complete());  // its other node is missing
  const auto c = come(launched("c.launch1"));
  EXPECT_TRUE(script->step->complete());
  net::AgentHello other = launched("d.launch1");
  other.set_nodes(3);
  EXPECT_EQ(refused(other), "it contradicts other agents of step 1.0");
  create(script);
  const net::BeginRound& begin = c->inbox.back().begin();
  EXPECT_FALSE(begin.alone());
  EXPECT_THAT(begin.nodes(), testing::UnorderedElementsAre("a", "b.launch1", "c.launch1"));
  done(b, net::PREPARE, "no");

  // One that is lost is missed; one that has ended is not.
  leave(b);
  EXPECT_FALSE(script->step->complete());
  const auto again = come(launched("b.launch1"));
  net::ToCoordinator end;
  end.mutable_end()->set_completed(true);
  for (const auto& agent : {again, c}) {
    steps->agent_said(agent->step, agent->node, end);
    leave(agent);
  }
  EXPECT_TRUE(script->step->complete());
  EXPECT_EQ(script->step->facts.nodes, 1u);
  create(script);
  EXPECT_TRUE(script->inbox.back().begin().alone());
}

TEST_F(StepsTest, LaunchedStepsAreRestoredTogetherWithTheScript) {
  net::AgentHello part = hello(1, "b.launch1"), script = hello(1, "a");
  part.set_launched(1);
  for (net::AgentHello* message : {&part, &script}) {
    message->set_restoring(true);
    message->set_capsules_to_restore(2);
  }
  const auto first = come(part);  // whichever comes first
  net::ToCoordinator ready;
  ready.mutable_ready()->set_phase(1);
  ready.mutable_ready()->set_version(7);
  steps->agent_said(first->step, first->node, ready);
  EXPECT_TRUE(first->inbox.empty());
  const auto second = come(script);
  EXPECT_TRUE(first->inbox.empty());
  steps->agent_said(second->step, second->node, ready);
  EXPECT_EQ(first->inbox.back().restart_go().phase(), 1u);
  EXPECT_EQ(second->inbox.back().restart_go().phase(), 1u);
}

TEST_F(StepsTest, AVersionTheTimerAskedFor) {
  net::AgentHello message = hello(1, "a");
  message.set_interval_ms(30);
  message.set_highest_version(4);
  const auto agent = come(message);
  EXPECT_TRUE(agent->inbox.empty());
  let_pass(milliseconds(150));
  ASSERT_EQ(agent->inbox.size(), 1u);  // none while one is under way
  EXPECT_EQ(agent->inbox[0].begin().version(), 5u);
  done(agent, net::COMMIT);
  EXPECT_EQ(committed(1), 1u);
  EXPECT_EQ(steps->counters().committed, 1u);
  leave(agent);
  EXPECT_TRUE(steps->all().empty());
  EXPECT_FALSE(catalog.steps(1, 1)[0].running);
}

TEST_F(StepsTest, OneVersionForEachInterval) {
  config.jitter = 50;
  steps->set_config(config);
  net::AgentHello often = hello(1, "a");
  often.set_interval_ms(100);
  const auto a = come(often);
  const auto begin = std::chrono::steady_clock::now();
  uint64_t last = 0;
  int64_t count = 0;
  while (std::chrono::steady_clock::now() - begin < std::chrono::seconds(2)) {
    let_pass(milliseconds(5));
    if (a->round == last) continue;
    last = a->round;
    count++;
    done(a, net::COMMIT);
  }
  const auto passed = std::chrono::steady_clock::now() - begin;
  EXPECT_GT(count, 1);
  EXPECT_LE(count, passed / milliseconds(100) + 2);  // whatever else the machine does
}

TEST_F(StepsTest, MaxWritersAndTheirQueue) {
  const auto a = come(hello(1, "a")), b = come(hello(2, "b")), c = come(hello(3, "c"));
  const auto of_a = create(a), of_b = create(b), of_c = create(c);
  EXPECT_EQ(a->inbox.size(), 1u);
  EXPECT_TRUE(b->inbox.empty());
  EXPECT_EQ(steps->create(b->step, {}), uint32_t{kInProgress});
  done(a, net::COMMIT, "no");
  EXPECT_TRUE(of_a->told);
  EXPECT_EQ(of_a->code, uint32_t{kCheckpointFailed});
  EXPECT_EQ(b->inbox.size(), 1u);
  EXPECT_TRUE(c->inbox.empty());
  leave(c);
  EXPECT_TRUE(of_c->told);
  done(b, net::COMMIT);
  EXPECT_EQ(of_b->code, 0u);
  EXPECT_EQ(steps->rounds_under_way(), 0u);
}

// A round of the agents that happen to be there is no version of the step.
TEST_F(StepsTest, AnAgentThatLeftWhileItsStepWaited) {
  const auto a = come(hello(1, "a")), b = come(hello(2, "b", 2)), c = come(hello(2, "c", 2));
  create(a);
  const auto waiting = create(b);
  leave(c);
  done(a, net::COMMIT);
  EXPECT_TRUE(b->inbox.empty());
  ASSERT_TRUE(waiting->told);
  EXPECT_EQ(waiting->code, uint32_t{kCheckpointFailed});
  EXPECT_EQ(steps->rounds_under_way(), 0u);
  const auto again = come(hello(2, "c", 2));
  create(b);
  EXPECT_EQ(again->inbox.size(), 1u);
}

// vacate of a job of two steps when one may write at a time: the first must not hold the place that the second needs.
TEST_F(StepsTest, StepsThatAreKilledTogetherNeedOnePlaceInTurn) {
  const auto a = come(hello(1, "a")), b = come(hello(2, "b"));
  std::vector<std::function<void(const std::string&)>> go_on;
  VersionRequest wanted;
  wanted.kill = true;
  wanted.before_kill = [&](auto go) { go_on.push_back(std::move(go)); };
  EXPECT_EQ(steps->create(a->step, wanted), kSlurmSuccess);
  EXPECT_EQ(steps->create(b->step, wanted), kSlurmSuccess);
  EXPECT_TRUE(b->inbox.empty());
  done(a, net::COMMIT);
  EXPECT_EQ(go_on.size(), 1u);
  ASSERT_EQ(b->inbox.size(), 1u);
  done(b, net::COMMIT);
  ASSERT_EQ(go_on.size(), 2u);
  for (const auto& go : go_on) go({});
  EXPECT_TRUE(catalog.runs(1, 1).at(0).ended_with_version());
  EXPECT_EQ(a->inbox.back().go().phase(), net::FINISH);
  EXPECT_EQ(b->inbox.back().go().phase(), net::FINISH);
  EXPECT_EQ(steps->rounds_under_way(), 0u);
  EXPECT_EQ(committed(1) + committed(2), 2u);
}

TEST_F(StepsTest, TheVersionOfAKillThatIsRefusedStays) {
  const auto a = come(hello(1, "a"));
  VersionRequest wanted;
  wanted.kill = true;
  uint32_t code = 0;
  wanted.finished = [&](uint32_t told, const std::string&) { code = told; };
  wanted.before_kill = [](auto go) { go("slurmctld does not cancel the job"); };
  steps->create(a->step, wanted);
  done(a, net::COMMIT);
  EXPECT_EQ(code, uint32_t{kCheckpointFailed});
  EXPECT_EQ(committed(1), 1u);
  EXPECT_FALSE(catalog.runs(1, 1).at(0).ended_with_version());
  EXPECT_TRUE(a->inbox.back().has_abort());
}

TEST_F(StepsTest, AStepWhoseAgentsAreMissingIsToldOnce) {
  steps.emplace(io, config, catalog, milliseconds(50));
  net::AgentHello first = hello(1, "a", 3), second = hello(1, "b", 3);
  first.set_interval_ms(1000);
  second.set_interval_ms(1000);
  const auto a = come(first), b = come(second);
  let_pass(milliseconds(20));
  EXPECT_TRUE(a->inbox.empty());
  let_pass(milliseconds(150));
  ASSERT_EQ(a->inbox.size(), 1u);
  EXPECT_EQ(a->inbox[0].abort().round(), 0u);
  EXPECT_EQ(a->inbox[0].abort().reason(), "nothing was heard of 1 of its 3 nodes");
  EXPECT_TRUE(b->inbox.empty());
  const auto c = come(hello(1, "c", 3));
  net::ToCoordinator end;
  end.mutable_end()->set_completed(true);
  steps->agent_said(b->step, "b", end);
  leave(b);
  leave(c);
  let_pass(milliseconds(150));
  ASSERT_EQ(a->inbox.size(), 2u);
  EXPECT_EQ(a->inbox[1].abort().reason(), "b: its tasks have ended, c: its agent is gone (went)");
  // Back before anybody is told: nothing is.
  const auto again = come(second), other = come(hello(1, "c", 3));
  leave(other);
  const auto last = come(hello(1, "c", 3));
  let_pass(milliseconds(150));
  EXPECT_EQ(a->inbox.size(), 2u);
}

TEST_F(StepsTest, WhatAnAgentSaysMeanwhileMakesNoPhaseLonger) {
  config.prepare_timeout = milliseconds(300);
  steps->set_config(config);
  const auto a = come(hello(1, "a", 2)), b = come(hello(1, "b", 2));
  const auto outcome = create(a);
  const auto begin = std::chrono::steady_clock::now();
  while (!outcome->told && std::chrono::steady_clock::now() - begin < std::chrono::seconds(5)) {
    net::ToCoordinator old;
    old.mutable_done()->set_round(1);  // of another round
    steps->agent_said(a->step, "a", old);
    let_pass(milliseconds(50));
  }
  ASSERT_TRUE(outcome->told);
  EXPECT_EQ(outcome->code, uint32_t{kTimedOut});
  EXPECT_THAT(outcome->text, HasSubstr("a, b took longer than 300 ms"));
  EXPECT_TRUE(b->inbox.back().has_abort());
}

TEST_F(StepsTest, MaxWaitHoldsForTheWholeVersion) {
  const auto a = come(hello(1, "a", 2)), b = come(hello(1, "b", 2));
  const auto outcome = create(a, milliseconds(1500));
  for (const net::Phase phase : {net::PREPARE, net::STOP}) {
    let_pass(milliseconds(50));
    done(a, phase);
    done(b, phase);
  }
  EXPECT_FALSE(outcome->told);
  let_pass(milliseconds(2000));
  ASSERT_TRUE(outcome->told);
  EXPECT_EQ(outcome->code, uint32_t{kTimedOut});
}

net::ToCoordinator end_is_near(uint64_t after_round = 0, uint32_t signal = 0) {
  net::ToCoordinator message;
  message.mutable_near()->set_after_round(after_round);
  message.mutable_near()->set_signal(signal);
  return message;
}

TEST_F(StepsTest, ALastVersionBeginsAtOnceAndOnce) {
  config.max_writers = 1;
  steps->set_config(config);
  const auto other = come(hello(2, "a"));
  create(other);  // has the only place
  const auto a = come(hello(1, "a", 2)), b = come(hello(1, "b", 2));
  steps->agent_said(a->step, "a", end_is_near());
  ASSERT_TRUE(a->inbox.back().has_begin());
  EXPECT_TRUE(a->inbox.back().begin().last());
  EXPECT_TRUE(b->inbox.back().begin().last());
  steps->agent_said(b->step, "b", end_is_near());  // has not heard yet
  for (const net::Phase phase : {net::PREPARE, net::STOP, net::COLLECT, net::WRITE, net::COMMIT}) {
    done(a, phase);
    done(b, phase);
  }
  EXPECT_EQ(committed(1), 1u);
  EXPECT_EQ(a->step->round, nullptr);
}

TEST_F(StepsTest, ALastVersionFollowsTheOneUnderWayOrOneThatFailed) {
  const auto a = come(hello(1, "a", 2)), b = come(hello(1, "b", 2));
  create(a);
  EXPECT_FALSE(a->inbox.back().begin().last());
  steps->agent_said(a->step, "a", end_is_near());
  done(a, net::NONE, "it forked just then");
  ASSERT_TRUE(a->step->round);
  ASSERT_TRUE(b->inbox.back().has_begin());
  EXPECT_TRUE(b->inbox.back().begin().last());
  const uint64_t first = b->round;
  done(b, net::NONE, "once more");
  EXPECT_EQ(a->step->round, nullptr);
  steps->agent_said(b->step, "b", end_is_near(first));
  ASSERT_TRUE(a->step->round);
  EXPECT_NE(a->step->round->id(), first);
  steps->agent_said(a->step, "a", end_is_near(first));  // of the one before
  done(a, net::NONE, "again");
  EXPECT_EQ(a->step->round, nullptr);
}

TEST_F(StepsTest, AVersionBeforeAnotherSignalIsNotTheLastOne) {
  const auto a = come(hello(1, "a", 2)), b = come(hello(1, "b", 2));
  steps->agent_said(a->step, "a", end_is_near(0, SIGUSR1));
  ASSERT_TRUE(b->inbox.back().has_begin());
  EXPECT_FALSE(b->inbox.back().begin().last());
  EXPECT_EQ(b->inbox.back().begin().signal(), uint32_t{SIGUSR1});
  const uint64_t first = b->round;
  steps->agent_said(b->step, "b", end_is_near(0, SIGUSR1));  // the same one
  steps->agent_said(b->step, "b", end_is_near(0, SIGTERM));
  steps->agent_said(a->step, "a", end_is_near(0, SIGUSR2));  // SIGTERM does not wait for it
  done(b, net::NONE, "it forked just then");
  ASSERT_TRUE(a->step->round);
  EXPECT_NE(a->step->round->id(), first);
  EXPECT_TRUE(a->inbox.back().begin().last());
  EXPECT_EQ(a->inbox.back().begin().signal(), 0u);
}

TEST_F(StepsTest, ASignalThatIsNoneAsksForNothing) {
  const auto a = come(hello(1, "a"));
  steps->agent_said(a->step, "a", end_is_near(0, 4000));
  EXPECT_FALSE(a->step->round);
}

TEST_F(StepsTest, ALastVersionThatCannotBeIsRefusedAtOnce) {
  const auto a = come(hello(1, "a", 2));
  steps->agent_said(a->step, "a", end_is_near());  // b is not there
  EXPECT_TRUE(a->inbox.back().has_abort());
  EXPECT_EQ(a->inbox.back().abort().round(), 0u);
}

TEST_F(StepsTest, ARunWhoseStepsAreAllHeldEndsWithItsVersion) {
  const auto ends_with_version = [&] { return catalog.runs(1, 1).at(0).ended_with_version(); };
  const auto say_held = [&](const std::shared_ptr<Agent>& agent, bool held) {
    net::ToCoordinator message;
    message.mutable_held()->set_held(held);
    steps->agent_said(agent->step, agent->node, message);
  };
  net::AgentHello script = hello(1, "a"), second = hello(1, "b");
  script.set_step(-5);
  second.set_step(1);
  second.set_interval_ms(20);
  come(script);  // is not checkpointed while its steps are
  const auto a = come(hello(1, "a")), b = come(second);
  say_held(a, true);
  EXPECT_FALSE(ends_with_version());
  say_held(b, true);
  EXPECT_TRUE(ends_with_version());
  let_pass(milliseconds(50));
  EXPECT_TRUE(b->inbox.empty());  // no version at the interval
  say_held(b, false);             // its time was over
  EXPECT_FALSE(ends_with_version());
  second.set_held(true);
  second.set_interval_ms(0);
  leave(b);
  come(second);  // as after a restart of icpctld
  EXPECT_TRUE(ends_with_version());
}

TEST_F(StepsTest, AStepHangsWhenAllItsAgentsSaySo) {
  config.hang_after = milliseconds(5000);
  steps->set_config(config);
  std::vector<milliseconds> told;
  steps->set_events({{}, {}, [&](const StepFactsRecord&, milliseconds idle) { told.push_back(idle); }});
  const auto say = [&](const std::shared_ptr<Agent>& agent, uint64_t idle_ms) {
    net::ToCoordinator message;
    message.mutable_idle()->set_idle_ms(idle_ms);
    steps->agent_said(agent->step, agent->node, message);
  };
  const auto a = come(hello(1, "a", 2)), b = come(hello(1, "b", 2));
  say(a, 9000);
  say(a, 10'000);
  EXPECT_TRUE(told.empty());
  say(b, 4000);  // its configuration is another one
  EXPECT_TRUE(told.empty());
  say(b, 6000);
  say(b, 7000);
  EXPECT_EQ(told, std::vector{milliseconds(6000)});  // once
  say(b, 0);
  say(b, UINT64_MAX);
  EXPECT_EQ(told.size(), 2u);
}

TEST_F(StepsTest, AnAgentThatConnectsAgainEndsTheRound) {
  const auto a = come(hello(1, "a", 2)), b = come(hello(1, "b", 2));
  const auto outcome = create(a);
  const auto again = come(hello(1, "b", 2));
  ASSERT_TRUE(outcome->told);
  EXPECT_THAT(outcome->text, HasSubstr("it connected again"));
  EXPECT_EQ(again->step, a->step);
  EXPECT_TRUE(a->inbox.back().has_abort());
  EXPECT_TRUE(a->step->complete());
}

// A full disk below icpctld: rounds go on, commands are answered, nothing stays behind.
TEST_F(StepsTest, ACatalogThatCannotBeWrittenStopsNothing) {
  const Blocked blocked(dir / "catalog.sqlite");
  const auto a = come(hello(1, "a")), b = come(hello(2, "b"));
  const auto of_a = create(a), of_b = create(b);
  done(a, net::COMMIT);
  EXPECT_TRUE(of_a->told);
  EXPECT_EQ(b->inbox.size(), 1u);
  done(b, net::COMMIT);
  EXPECT_TRUE(of_b->told);
  EXPECT_EQ(steps->rounds_under_way(), 0u);
  leave(a);
  leave(b);
  EXPECT_TRUE(steps->all().empty());
}

TEST_F(StepsTest, VersionsTakenWithoutACoordinatorAreKnownOnceAllSaySo) {
  net::AgentHello first = hello(1, "a", 2), second = hello(1, "b", 2);
  for (net::AgentHello* message : {&first, &second}) {
    for (const uint32_t version : {3u, 4u}) {
      net::VersionNumbers& numbers = *message->add_recent();
      numbers.set_version(version);
      numbers.set_bytes(10);
    }
  }
  second.mutable_recent()->RemoveLast();  // it has not committed version 4
  come(first);
  EXPECT_EQ(committed(1), 0u);
  come(second);
  const auto known = catalog.versions({1, 0, 0}, 10);
  ASSERT_EQ(known.size(), 1u);
  EXPECT_EQ(known[0].numbers().version(), 3u);
  EXPECT_EQ(known[0].numbers().bytes(), 20u);
}

TEST_F(StepsTest, DisabledStepsAreLeftAlone) {
  const auto a = come(hello(1, "a"));
  catalog.set_disabled(1, std::nullopt, 1);
  EXPECT_EQ(steps->create(a->step, {}), uint32_t{kDisabled});
  catalog.set_disabled(1, std::nullopt, 0);
  catalog.set_disabled(1, 0, 1);
  EXPECT_EQ(steps->create(a->step, {}), uint32_t{kDisabled});
  catalog.set_disabled(1, 0, 0);
  create(a);
}

TEST_F(StepsTest, ErrorsOfAgentsAreKeptWithinBounds) {
  const auto a = come(hello(1, "a"));
  create(a);
  done(a, net::COMMIT, std::string(1 << 20, 'x'));
  EXPECT_LE(catalog.steps(1, 1)[0].last_error.size(), 4096u);
}

TEST_F(StepsTest, ANumberThatIsTakenInAnotherImageIsPassed) {
  const auto agent = come(hello(1, "a"));
  const auto ask = [&] {
    VersionRequest wanted;
    wanted.image_dir = "/other";
    EXPECT_EQ(steps->create(agent->step, wanted), kSlurmSuccess);
  };
  const auto begun = [&] {
    const net::BeginRound begin = agent->inbox.back().begin();
    agent->inbox.clear();
    return begin;
  };
  const auto taken = [&](uint32_t highest) {
    net::ToCoordinator message;
    message.mutable_done()->set_round(agent->round);
    message.mutable_done()->set_error("taken");
    message.mutable_done()->set_highest_version(highest);
    steps->agent_said(agent->step, agent->node, message);
  };
  ask();
  const net::BeginRound first = begun();
  EXPECT_EQ(first.image_dir(), "/other");
  EXPECT_EQ(first.version(), 1u);
  taken(41);
  const net::BeginRound second = begun();
  EXPECT_EQ(second.image_dir(), "/other");
  EXPECT_EQ(second.version(), 42u);
  done(agent, net::COMMIT);
  EXPECT_FALSE(agent->step->round);
  EXPECT_EQ(steps->rounds_under_way(), 0u);
  // Numbers that cannot be passed are not tried for ever.
  ask();
  taken(UINT32_MAX);
  taken(UINT32_MAX);
  EXPECT_FALSE(agent->step->round);
  EXPECT_EQ(steps->rounds_under_way(), 0u);
}

TEST_F(StepsTest, WhoComesLateToARestartThatFailedHearsWhy) {
  const auto restoring = [](const char* node) {
    net::AgentHello message = hello(1, node, 2);
    message.set_restoring(true);
    return message;
  };
  const auto ready = [&](const std::shared_ptr<Agent>& agent, const std::string& error) {
    net::ToCoordinator message;
    message.mutable_ready()->set_phase(1);
    message.mutable_ready()->set_error(error);
    steps->agent_said(agent->step, agent->node, message);
  };
  const auto first = come(restoring("a"));
  ready(first, "there is no such image");
  const auto late = come(restoring("b"));
  ready(late, "");
  ASSERT_FALSE(late->inbox.empty());
  EXPECT_EQ(late->inbox.back().restart_go().error(), "a: there is no such image");
  EXPECT_FALSE(late->step->complete());
}

TEST_F(StepsTest, NoVersionsWhileAStepIsRestored) {
  net::AgentHello first = hello(1, "a", 2), second = hello(1, "b", 2);
  first.set_restoring(true);
  second.set_restoring(true);
  const auto a = come(first), b = come(second);
  EXPECT_EQ(steps->create(a->step, {}), uint32_t{kCheckpointFailed});
  for (uint32_t phase = 1; phase <= 3; phase++) {
    net::ToCoordinator ready;
    ready.mutable_ready()->set_phase(phase);
    ready.mutable_ready()->set_version(6);
    if (phase == 3) {
      *ready.mutable_ready()->mutable_hello() = hello(1, "a", 2);
      ready.mutable_ready()->mutable_hello()->set_highest_version(6);
    }
    steps->agent_said(a->step, "a", ready);
    EXPECT_EQ(a->inbox.size(), phase - 1);
    steps->agent_said(b->step, "b", ready);
    ASSERT_EQ(a->inbox.size(), phase);
  }
  create(a);
  EXPECT_EQ(a->inbox.back().begin().version(), 7u);
}

}  // namespace
}  // namespace icp
