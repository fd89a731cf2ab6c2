// SPDX-License-Identifier: GPL-2.0-or-later
// What stands in for srun in batch scripts, with environments that such a script may have.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "temp_dir.h"

namespace icp {
namespace {

const std::string kLaunch = std::string(ICP_BUILD_DIR) + "/coordinator/launch";

class StandIn : public ::testing::Test {
 protected:
  StandIn() {
    std::filesystem::create_directory(bin());
    std::ofstream(bin() + "/srun") << "#!/bin/sh\necho \"srun itself: $PATH\"\n";
    std::filesystem::permissions(bin() + "/srun", std::filesystem::perms::owner_all);
  }
  std::string bin() const { return directory_ / "bin"; }

  // What it prints with this environment, and how it ends (124: not in time).
  std::pair<std::string, int> run(const std::string& environment) const {
    const std::string command = "env -i " + environment + " /usr/bin/timeout 20 " + kLaunch + "/srun orted 2>&1";
    FILE* const pipe = ::popen(command.c_str(), "r");
    std::string text;
    char part[4096];
    for (size_t got = 0; text.size() < 1 << 20 && (got = ::fread(part, 1, sizeof part, pipe)) > 0;)
      text.append(part, got);
    const int status = ::pclose(pipe);
    return {text, WIFEXITED(status) ? WEXITSTATUS(status) : -1};
  }

  test::TempDir directory_;
};

TEST_F(StandIn, FindsSrunWhateverItsOwnDirectoryIsCalled) {
  const std::string link = directory_ / "link", path = bin() + ":/usr/bin:/bin";
  std::filesystem::create_directory_symlink(kLaunch, link);
  for (const std::string& own : {kLaunch, kLaunch + "/", link, link + "/."}) {
    for (const std::string& variable :
         {"ICP_LAUNCH_PATH=" + kLaunch, std::string(), std::string("ICP_LAUNCH_PATH=/x")}) {
      const auto [text, status] = run("PATH=" + own + ":" + path + " " + variable);
      EXPECT_EQ(status, 0) << own << " " << variable;
      EXPECT_TRUE(text.ends_with("srun itself: " + path + "\n")) << text.substr(0, 1000);
    }
  }
}

TEST_F(StandIn, EndsWhereThereIsNoSrun) {
  EXPECT_EQ(run("PATH=" + kLaunch + ":/nowhere").second, 127);
  EXPECT_EQ(run("PATH=").second, 127);
  ASSERT_EQ(::unlink((bin() + "/srun").c_str()), 0);
  ASSERT_EQ(::mkfifo((bin() + "/srun").c_str(), 0700), 0);
  EXPECT_EQ(run("PATH=" + kLaunch + ":" + bin()).second, 127);
}

TEST_F(StandIn, TakesLongVariables) {
  const std::string text(100'000, 'x'), path = bin() + ":/usr/bin:/bin";
  for (const char* name : {"ICP_LAUNCH_PATH", "ICP_LAUNCH_SOCKET", "SLURM_JOB_ID"})
    EXPECT_EQ(run("PATH=" + kLaunch + ":" + path + " " + name + "=" + text).second, 0) << name;
}

}  // namespace
}  // namespace icp
