// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "engine/base/error.h"

namespace icp {
namespace {

std::string complaint(const std::string& text) {
  try {
    Config::parse(text, "icp.yaml");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
  return "none";
}

TEST(Config, EmptyFileGivesDefaults) {
  for (const char* text : {"", "# only a comment\n", "---\n"}) {
    const Config config = Config::parse(text, "icp.yaml");
    EXPECT_EQ(config.ipc, IpcPolicy::kPrivate);
    EXPECT_EQ(config.staging_limit, 1ull << 30);
  }
}

TEST(Config, ExampleHoldsTheDefaults) {
  const Config shipped = Config::load(ICP_SOURCE_DIR "/config/icp.yaml", true), built_in;
  EXPECT_EQ(shipped.ipc, built_in.ipc);
  EXPECT_EQ(shipped.batch, built_in.batch);
  EXPECT_EQ(shipped.checkpoint_dir, built_in.checkpoint_dir);
  EXPECT_EQ(shipped.min_interval, built_in.min_interval);
  EXPECT_EQ(shipped.tracker, built_in.tracker);
  EXPECT_EQ(shipped.staging_limit, built_in.staging_limit);
  EXPECT_EQ(shipped.changed_files, built_in.changed_files);
  EXPECT_EQ(shipped.run_dir, built_in.run_dir);
  EXPECT_EQ(shipped.log, built_in.log);
  EXPECT_EQ(shipped.log_level, built_in.log_level);
}

TEST(Config, ReadsEveryKey) {
  const Config config = Config::parse(
      "ipc: host\nbatch: never\ncheckpoint_dir: /scratch/%u\nmin_interval: 30s\ntracker: soft-dirty\n"
      "staging_limit: 512 MiB\ngrown_files: fail\nrun_dir: /run/x\nlog: syslog\nlog_level: debug\n",
      "icp.yaml");
  EXPECT_EQ(config.ipc, IpcPolicy::kHost);
  EXPECT_EQ(config.batch, BatchPolicy::kNever);
  EXPECT_EQ(config.checkpoint_dir, "/scratch/%u");
  EXPECT_EQ(config.min_interval, std::chrono::seconds(30));
  EXPECT_EQ(config.tracker, TrackerKind::kSoftDirty);
  EXPECT_EQ(config.staging_limit, 512ull << 20);
  EXPECT_EQ(config.changed_files, ChangedFiles::kRefuse);
  EXPECT_EQ(config.run_dir, "/run/x");
  EXPECT_EQ(config.log, "syslog");
  EXPECT_EQ(config.log_level, "debug");
}

TEST(Config, ErrorsNameFileLineAndKey) {
  EXPECT_EQ(complaint("# a\nipcs: private\n"), "icp.yaml:2: ipcs: unknown key");
  EXPECT_EQ(complaint("ipc: both\n"), "icp.yaml:1: ipc: 'both' is not one of host, off, private");
  EXPECT_EQ(complaint("ipc: [private]\n"), "icp.yaml:1: ipc: a single value is needed, not a list or a map");
  EXPECT_EQ(complaint("ipc:\n"), "icp.yaml:1: ipc: a value is missing");
  EXPECT_EQ(complaint("ipc: off\nipc: host\n"), "icp.yaml:2: ipc: given twice");
  EXPECT_EQ(complaint("log: here.log\n"), "icp.yaml:1: log: 'here.log' is not an absolute path");
  EXPECT_THAT(complaint("\n\nmin_interval: soon\n"), testing::StartsWith("icp.yaml:3: min_interval: "));
  EXPECT_THAT(complaint("tracker: magic\n"), testing::StartsWith("icp.yaml:1: tracker: "));
  EXPECT_THAT(complaint("- a\n- b\n"), testing::StartsWith("icp.yaml:1: "));
  EXPECT_THAT(complaint("ipc: 'private\n"), testing::StartsWith("icp.yaml:"));
}

TEST(Config, Sizes) {
  const auto bad = testing::HasSubstr("is not a size");
  for (const char* text : {"0", "-1", "1GB", "many", "1.5GiB", "99999999999999999999", "9999999999TiB", "''"}) {
    EXPECT_THAT(complaint(std::string("staging_limit: ") + text), bad) << text;
  }
  EXPECT_EQ(Config::parse("staging_limit: 4096", "f").staging_limit, 4096u);
  EXPECT_EQ(Config::parse("staging_limit: 2TiB", "f").staging_limit, 2ull << 40);
}

TEST(Config, MissingFile) {
  EXPECT_EQ(Config::load("/nonexistent/icp.yaml").ipc, IpcPolicy::kPrivate);
  EXPECT_THROW(Config::load("/nonexistent/icp.yaml", true), Error);
}

}  // namespace
}  // namespace icp
