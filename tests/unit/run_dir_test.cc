// SPDX-License-Identifier: GPL-2.0-or-later
// Paths below run_dir: made by root, of words that come from a job.
#include "engine/sysv/run_dir.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "engine/base/error.h"
#include "tests/unit/temp_dir.h"

namespace icp {
namespace {

namespace fs = std::filesystem;

TEST(RunDir, TakesOnlyNamesOfNodes) {
  const test::TempDir dir;
  const std::string base = dir.path() + "/run";
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("../../etc/x"), std::string("/etc"),
        std::string("a/b"), std::string("a\nb"), std::string("a\x1b[2J"), std::string("a b"), std::string("a\0b", 3),
        std::string(300, 'n'), std::string(65536, 'n')}) {
    EXPECT_FALSE(is_node_name(name));
    EXPECT_THROW(RunDir::make(base, name), Error);
    EXPECT_THROW(RunDir::find(base, name), Error);
  }
  EXPECT_FALSE(fs::exists(base));
  EXPECT_FALSE(RunDir::find(base, "n1"));
  const RunDir made = RunDir::make(base, "n1");
  EXPECT_EQ(made.path(), base + "/n1");
  struct stat info {};
  ASSERT_EQ(::stat(made.path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700U);
  EXPECT_EQ(made.job_directory(7, 1), base + "/n1/job_7.1");
  EXPECT_TRUE(RunDir::find(base, "n1"));
}

TEST(RunDir, FollowsNoLinkAndWaitsForNobody) {
  const test::TempDir dir;
  const std::string base = dir.path() + "/run";
  const RunDir made = RunDir::make(base, "n1");
  const std::string file = dir.path() + "/elsewhere";
  ASSERT_TRUE(UniqueFd(::open(file.c_str(), O_WRONLY | O_CREAT, 0600)));
  ASSERT_EQ(::symlink(file.c_str(), (base + "/n1/job_7.run").c_str()), 0);
  EXPECT_FALSE(made.open("job_7.run", O_RDONLY));
  EXPECT_FALSE(made.open("job_7.run", O_WRONLY | O_CREAT));
  ASSERT_EQ(::mkfifo((base + "/n1/job_8.run").c_str(), 0600), 0);
  EXPECT_FALSE(made.open("job_8.run", O_RDONLY));  // else it would wait here for a writer, for ever
  EXPECT_FALSE(made.open("job_8.run", O_WRONLY));
  EXPECT_TRUE(made.open("job_9.run", O_WRONLY | O_CREAT));
  // Directories that are links, or others' to write to.
  ASSERT_EQ(::symlink("n1", (base + "/n2").c_str()), 0);
  EXPECT_THROW(RunDir::make(base, "n2"), Error);
  ASSERT_EQ(::symlink("run", (dir.path() + "/link").c_str()), 0);
  EXPECT_THROW(RunDir::find(dir.path() + "/link", "n1"), Error);
  ASSERT_EQ(::chmod((base + "/n1").c_str(), 0770), 0);
  EXPECT_THROW(RunDir::find(base, "n1"), Error);
}

TEST(RunDir, StaysWhereItWasOpened) {
  const test::TempDir dir;
  const std::string base = dir.path() + "/run";
  const RunDir made = RunDir::make(base, "n1");
  fs::rename(base, dir.path() + "/moved");
  ASSERT_TRUE(made.open("job_7.steps", O_WRONLY | O_CREAT));
  EXPECT_TRUE(fs::exists(dir.path() + "/moved/n1/job_7.steps"));
  EXPECT_TRUE(made.rename("job_7.steps", "job_7.run"));
  EXPECT_TRUE(made.remove("job_7.run"));
}

}  // namespace
}  // namespace icp
