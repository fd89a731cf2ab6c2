// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "engine/base/error.h"
#include "tests/unit/temp_dir.h"

namespace icp {
namespace {

using testing::HasSubstr;

StepFactsRecord step_of(uint32_t job, int32_t step = 0, uint32_t restarts = 0) {
  StepFactsRecord record;
  record.key = {job, step, restarts};
  record.uid = 1000 + job;
  record.image = std::string("/scratch/\0odd\xff", 14);
  record.nodes = 3;
  record.interval_ms = 60'000;
  return record;
}

net::VersionNumbers numbers_of(uint32_t version) {
  net::VersionNumbers numbers;
  numbers.set_version(version);
  numbers.set_taken_unix_ns(version * 1'000'000'007ull);
  numbers.set_bytes(version * 4096ull);
  numbers.set_full(version == 1);
  numbers.set_tracker("uffd");
  return numbers;
}

TEST(Catalog, RemembersAcrossOpenings) {
  const test::TempDir dir;
  {
    Catalog catalog(dir.path());
    catalog.step_seen(step_of(7));
    catalog.step_seen(step_of(7, -5));
    catalog.step_seen(step_of(9, 0, 2));
    catalog.version({7, 0, 0}, numbers_of(1), 3);
    catalog.version({7, 0, 0}, numbers_of(2), 3);
    catalog.version({7, 0, 0}, numbers_of(2), 99);  // known: left as it is
    catalog.result({7, 0, 0}, 5004, "it took too long");
    catalog.step_ended({9, 0, 2});
    EXPECT_TRUE(catalog.steps(7, 1)[0].running);
  }
  const Catalog catalog(dir.path());
  ASSERT_EQ(catalog.steps(0, 100).size(), 3u);
  EXPECT_EQ(catalog.steps(0, 100)[0].key.job, 9u);
  EXPECT_EQ(catalog.steps(0, 2).size(), 2u);
  const auto steps = catalog.steps(7, 100);
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[0].key, (StepKey{7, -5, 0}));
  EXPECT_EQ(steps[1].uid, 1007u);
  EXPECT_EQ(steps[1].image, step_of(7).image);
  EXPECT_EQ(steps[1].interval_ms, 60'000u);
  EXPECT_EQ(steps[1].last_code, 5004u);
  EXPECT_EQ(steps[1].last_error, "it took too long");
  EXPECT_EQ(steps[1].versions, 2u);
  EXPECT_FALSE(steps[1].running);  // until its agents say so
  const auto versions = catalog.versions({7, 0, 0}, 10);
  ASSERT_EQ(versions.size(), 2u);
  EXPECT_EQ(versions[0].nodes(), 3u);
  EXPECT_EQ(versions[0].numbers().version(), 2u);
  EXPECT_EQ(versions[0].numbers().bytes(), 8192u);
  EXPECT_TRUE(versions[1].numbers().full());
  EXPECT_EQ(versions[1].numbers().tracker(), "uffd");
  EXPECT_EQ(catalog.versions({7, 0, 0}, 1).size(), 1u);
  EXPECT_TRUE(catalog.versions({7, 1, 0}, 10).empty());
}

TEST(Catalog, AnswersForOneOwnerAndForAThreadOfItsOwn) {
  const test::TempDir dir;
  Catalog catalog(dir.path());
  for (uint32_t job = 1; job <= 50; job++) {
    StepFactsRecord record = step_of(job);
    record.uid = 1000 + job % 2;
    catalog.step_seen(record);
    catalog.step_seen(step_of(job, 1));
  }
  const auto reader = catalog.reader();
  EXPECT_EQ(reader->steps(0, 1000).size(), 100u);
  const auto own = reader->steps(0, 10, 1001);
  ASSERT_EQ(own.size(), 10u);
  EXPECT_EQ(own[0].key, (StepKey{49, 0, 0}));
  EXPECT_EQ(own[9].key, (StepKey{31, 0, 0}));
  EXPECT_TRUE(reader->steps(2, 10, 1001).empty());
  EXPECT_EQ(reader->steps(2, 10, {}, 1).size(), 1u);
  catalog.version({7, 0, 0}, numbers_of(1), 3);  // seen at once
  EXPECT_EQ(reader->steps(7, 10, {}, 0).at(0).versions, 1u);
  std::thread([&reader] { EXPECT_EQ(reader->versions({7, 0, 0}, 10).size(), 1u); }).join();
}

TEST(Catalog, SeenAgainRunsAgainWithItsNewFacts) {
  const test::TempDir dir;
  Catalog catalog(dir.path());
  catalog.step_seen(step_of(7));
  catalog.result({7, 0, 0}, 2200, "x");
  catalog.step_ended({7, 0, 0});
  EXPECT_FALSE(catalog.steps(7, 1)[0].running);
  StepFactsRecord again = step_of(7);
  again.interval_ms = 5;
  catalog.step_seen(again);
  EXPECT_TRUE(catalog.steps(7, 1)[0].running);
  EXPECT_EQ(catalog.steps(7, 1)[0].interval_ms, 5u);
  EXPECT_EQ(catalog.steps(7, 1)[0].last_code, 2200u);
}

TEST(Catalog, AVersionOfAnUnknownStepIsAnError) {
  const test::TempDir dir;
  Catalog catalog(dir.path());
  try {
    catalog.version({1, 0, 0}, numbers_of(1), 1);
    FAIL() << "taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kSystem);
    EXPECT_THAT(error.what(), HasSubstr(dir / "catalog.sqlite"));
  }
}

TEST(Catalog, SecondOpenerIsRefused) {
  const test::TempDir dir;
  const Catalog first(dir.path());
  try {
    const Catalog second(dir.path());
    FAIL() << "two at once";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kBusy);
    EXPECT_THAT(error.what(), HasSubstr("another icpctld is running: it holds " + dir / "icpctld.lock"));
  }
}

TEST(Catalog, WhatIsNoCatalogIsSaidToBeNone) {
  const test::TempDir dir;
  dir.write("catalog.sqlite", std::string(10'000, 'x'));
  for (int i = 0; i < 2; i++) {  // and the lock is free again after it
    try {
      const Catalog catalog(dir.path());
      FAIL() << "opened";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kSystem);
      EXPECT_THAT(error.what(), HasSubstr(dir / "catalog.sqlite"));
    }
  }
  EXPECT_THROW(Catalog("/nonexistent/directory"), Error);
}

TEST(Catalog, DisabledCounts) {
  const test::TempDir dir;
  {
    Catalog catalog(dir.path());
    catalog.set_disabled(7, std::nullopt, 2);
    catalog.set_disabled(7, -5, 1);
    catalog.set_disabled(7, -5, 4);
  }
  const Catalog catalog(dir.path());
  EXPECT_EQ(catalog.disabled(7, std::nullopt), 2u);
  EXPECT_EQ(catalog.disabled(7, -5), 4u);
  EXPECT_EQ(catalog.disabled(7, 0), 0u);
  EXPECT_EQ(catalog.disabled(8, std::nullopt), 0u);
}

TEST(Catalog, WhereARunGoesOnFrom) {
  const test::TempDir dir;
  {
    Catalog catalog(dir.path());
    catalog.set_restart_dir(7, 1, "/one");
    catalog.set_restart_dir(7, 2, "/two");
    catalog.set_restart_dir(8, 1, "/three");
    catalog.set_restart_dir(8, 1, "");
  }
  const Catalog catalog(dir.path());
  EXPECT_EQ(catalog.restart_dir(7, 2), "/two");
  EXPECT_EQ(catalog.restart_dir(7, 1), "");  // of another run
  EXPECT_EQ(catalog.restart_dir(7, 3), "");
  EXPECT_EQ(catalog.restart_dir(8, 1), "");
}

TEST(Catalog, ForgetsWhatEndedLongAgoWithItsVersions) {
  const test::TempDir dir;
  Catalog catalog(dir.path());
  for (const uint32_t job : {1u, 2u}) {
    catalog.step_seen(step_of(job));
    catalog.version({job, 0, 0}, numbers_of(1), 1);
    catalog.set_disabled(job, std::nullopt, 1);
  }
  catalog.step_ended({1, 0, 0});
  catalog.forget(3600);
  EXPECT_EQ(catalog.steps(0, 10).size(), 2u);
  catalog.forget(-1);  // all that has ended by now
  ASSERT_EQ(catalog.steps(0, 10).size(), 1u);
  EXPECT_EQ(catalog.steps(0, 10)[0].key.job, 2u);
  EXPECT_TRUE(catalog.versions({1, 0, 0}, 10).empty());
  EXPECT_EQ(catalog.versions({2, 0, 0}, 10).size(), 1u);
  EXPECT_EQ(catalog.disabled(1, std::nullopt), 0u);
  EXPECT_EQ(catalog.disabled(2, std::nullopt), 1u);
}

// Writes versions until it is killed; says each number once the catalog has taken it.
[[noreturn]] void write_for_ever(const std::string& directory, int out) {
  Catalog catalog(directory);
  catalog.step_seen(step_of(7));
  const auto known = catalog.versions({7, 0, 0}, 1);
  for (uint32_t version = known.empty() ? 1 : known[0].numbers().version() + 1;; version++) {
    catalog.version({7, 0, 0}, numbers_of(version), 3);
    if (::write(out, &version, sizeof version) != sizeof version) ::_exit(1);
  }
}

TEST(Catalog, KilledWhileItWritesItForgetsNothingAndShowsNoHalf) {
  const test::TempDir dir;
  uint32_t said = 0;
  for (int round = 0; round < 15; round++) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) write_for_ever(dir.path(), ends[1]);
    ::close(ends[1]);
    // Killed somewhere between two versions, in the middle of one as a rule.
    const uint32_t target = said + 5 + static_cast<uint32_t>(round);
    uint32_t version = 0;
    while (said < target && ::read(ends[0], &version, sizeof version) == sizeof version) said = version;
    std::this_thread::sleep_for(std::chrono::microseconds(37 * round));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    while (::read(ends[0], &version, sizeof version) == sizeof version) said = version;
    ::close(ends[0]);

    const Catalog catalog(dir.path());
    const auto versions = catalog.versions({7, 0, 0}, 100'000);
    ASSERT_FALSE(versions.empty());
    // One more than was said may be in: committed, and killed before the word was out.
    ASSERT_GE(versions[0].numbers().version(), said);
    ASSERT_LE(versions[0].numbers().version(), said + 1);
    ASSERT_EQ(versions.size(), versions[0].numbers().version());
    for (size_t i = 0; i < versions.size(); i++) {
      const auto number = static_cast<uint32_t>(versions.size() - i);
      ASSERT_EQ(versions[i].numbers().SerializeAsString(), numbers_of(number).SerializeAsString());
      ASSERT_EQ(versions[i].nodes(), 3u);
    }
    said = versions[0].numbers().version();
  }
}

TEST(Catalog, RunsOfAJob) {
  const test::TempDir dir;
  {
    Catalog catalog(dir.path());
    catalog.step_seen(step_of(7));
    catalog.step_seen(step_of(7, 1));
    catalog.run_seen({7, 0}, 1007, "");
    catalog.run_seen({7, 0}, 1007, "n1,n2");
    catalog.run_seen({7, 0}, 1007, "");  // another step of it, whose agents have not all come
    for (const int32_t step : {0, 1}) {
      net::VersionNumbers numbers = numbers_of(static_cast<uint32_t>(step) + 1);
      numbers.set_stop_ns(5);
      catalog.version({7, step, 0}, numbers, 2);
    }
    catalog.run_ends_because({7, 0}, "node n1 was drained");
    catalog.run_ends_because({7, 0}, "requeued by Slurm");  // the first word counts
    catalog.run_ended({7, 0});
    catalog.run_held({7, 0}, true);
    catalog.run_hung({7, 1}, 1234);
    catalog.run_held({7, 1}, true);
    catalog.run_held({7, 1}, false);  // it ran on
    catalog.run_seen({7, 1}, 1007, "n2");
    catalog.run_ends_because({7, 1}, "cannot restart", true);
    catalog.run_seen({8, 0}, 1008, "n3");
  }
  Catalog catalog(dir.path());
  const auto runs = catalog.runs(7, 10);
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].nodes(), "n1,n2");
  EXPECT_EQ(runs[0].why(), "node n1 was drained");
  EXPECT_EQ(runs[0].versions(), 2u);
  EXPECT_EQ(runs[0].last_version(), 2u);
  EXPECT_EQ(runs[0].stop_ns(), 10u);
  EXPECT_GE(runs[0].ended_unix_ms(), runs[0].began_unix_ms());
  EXPECT_FALSE(runs[0].restart_failed());
  EXPECT_TRUE(runs[0].ended_with_version());
  EXPECT_EQ(runs[0].hung_unix_ms(), 0u);
  EXPECT_FALSE(runs[1].ended_with_version());
  EXPECT_EQ(runs[1].hung_unix_ms(), 1234u);
  EXPECT_TRUE(runs[1].restart_failed());
  EXPECT_NE(runs[1].ended_unix_ms(), 0u);  // icpctld has ended meanwhile: whoever runs says so again
  EXPECT_EQ(catalog.runs(7, 1)[0].restarts(), 1u);
  EXPECT_EQ(catalog.runs(7, 1).size(), 1u);
  EXPECT_TRUE(catalog.runs(9, 10).empty());
}

}  // namespace
}  // namespace icp
