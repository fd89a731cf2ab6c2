// SPDX-License-Identifier: GPL-2.0-or-later
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/icpstepd/launched_steps.h"
#include "coordinator/launch/request.h"

namespace icp::launch {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::Not;

Request orted() {
  return {"/usr/bin/srun",
          "/home/user",
          022,
          {"srun", "--nodes=1", "--nodelist=node2", "-w", "node2", "-wnode2", "--ntasks=1", "orted", "-w", "x"},
          {"PATH=/bin", "SLURM_JOB_ID=7", "SLURM_JOB_NODELIST=node[1-2]", "EMPTY="}};
}

TEST(LaunchRequest, IsReadAsItWasWritten) {
  const Request request = orted();
  const auto read = Request::decode(request.encode());
  ASSERT_TRUE(read);
  EXPECT_EQ(read->program, request.program);
  EXPECT_EQ(read->directory, request.directory);
  EXPECT_EQ(read->umask, request.umask);
  EXPECT_EQ(read->arguments, request.arguments);
  EXPECT_EQ(read->environment, request.environment);
}

TEST(LaunchRequest, AnythingElseIsNone) {
  const std::string good = orted().encode();
  for (size_t length = 0; length < good.size(); length++) {
    // Cut at the end of a variable it is a request with fewer of them.
    const auto read = Request::decode(good.substr(0, length));
    if (!read) continue;
    EXPECT_EQ(good[length - 1], '\0');
  }
  const auto text = [](std::initializer_list<std::string> parts) {
    std::string all;
    for (const std::string& part : parts) all += part + '\0';
    return all;
  };
  EXPECT_TRUE(Request::decode(text({"srun 1", "/srun", "/", "18", "1", "srun"})));
  EXPECT_FALSE(Request::decode(text({"srun 2", "/srun", "/", "18", "1", "srun"})));
  EXPECT_FALSE(Request::decode(text({"srun 1", "srun", "/", "18", "1", "srun"})));
  EXPECT_FALSE(Request::decode(text({"srun 1", "/srun", "here", "18", "1", "srun"})));
  EXPECT_FALSE(Request::decode(text({"srun 1", "/srun", "/", "512", "1", "srun"})));
  EXPECT_FALSE(Request::decode(text({"srun 1", "/srun", "/", "-1", "1", "srun"})));
  EXPECT_FALSE(Request::decode(text({"srun 1", "/srun", "/", "18", "2", "srun"})));
  EXPECT_FALSE(Request::decode(text({"srun 1", "/srun", "/", "18", "0"})));
  EXPECT_FALSE(Request::decode(text({"srun 1", "/srun", "/", "18", "18446744073709551615", "srun"})));
  EXPECT_FALSE(Request::decode(std::string(kMaxRequest + 1, '\0')));
}

TEST(LaunchRequest, DaemonsOfLaunchersAreKnown) {
  EXPECT_TRUE(starts_daemons({"srun", "-n1", "orted", "-mca"}));
  EXPECT_TRUE(starts_daemons({"srun", "/opt/mpich/bin/hydra_pmi_proxy", "--port"}));
  EXPECT_TRUE(starts_daemons({"srun", "prted"}));
  EXPECT_FALSE(starts_daemons({"srun", "-n1", "./solver", "orted.conf"}));
}

TEST(LaunchRequest, InTheSameAllocationNodesStay) {
  const Request again = in_new_allocation(orted(), {"SLURM_JOB_NODELIST=node[1-2]", "SLURM_JOB_ID=7", "HOME=/root"});
  EXPECT_EQ(again.arguments, orted().arguments);
  EXPECT_THAT(again.environment, Not(Contains("HOME=/root")));
}

TEST(LaunchRequest, InAnotherAllocationSlurmChoosesThem) {
  const Request again = in_new_allocation(orted(), {"SLURM_JOB_NODELIST=node[3-4]", "SLURM_JOB_ID=8"});
  EXPECT_THAT(again.arguments, ElementsAre("srun", "--nodes=1", "--ntasks=1", "orted", "-w", "x"));
  EXPECT_THAT(again.environment, Contains("SLURM_JOB_ID=8"));
  EXPECT_THAT(again.environment, Not(Contains("SLURM_JOB_ID=7")));
  EXPECT_THAT(again.environment, Contains("PATH=/bin"));
}

TEST(LaunchRequest, OnFewerNodesNoMoreAreAskedForThanThereAre) {
  const auto again = [](std::vector<std::string> arguments, const std::string& count) {
    Request request = orted();
    request.arguments = std::move(arguments);
    return in_new_allocation(request, {"SLURM_JOB_NODELIST=node3", "SLURM_JOB_NUM_NODES=" + count}).arguments;
  };
  EXPECT_THAT(
      again({"srun", "--ntasks-per-node=1", "--nodes=2", "--nodelist=node2,node4", "--ntasks=2", "prted", "-N", "4"},
            "1"),
      ElementsAre("srun", "--nodes=1", "--ntasks=2", "prted", "-N", "4"));
  EXPECT_THAT(again({"srun", "-N", "3", "-n", "3", "--input", "none", "hydra_pmi_proxy"}, "2"),
              ElementsAre("srun", "--nodes=2", "-n", "3", "--input", "none", "hydra_pmi_proxy"));
  EXPECT_THAT(again({"srun", "-N3", "--ntasks-per-node", "1", "-n3", "orted"}, "4"),
              ElementsAre("srun", "-N3", "-n3", "orted"));
  EXPECT_THAT(again({"srun", "--nodes", "3", "-n3", "orted"}, ""), ElementsAre("srun", "--nodes", "3", "-n3", "orted"));
}

TEST(LaunchRequest, TheScriptsNodeGetsADaemonOnlyIfThereIsNoOther) {
  const auto again = [](const std::string& count) {
    return in_new_allocation(orted(),
                             {"SLURM_JOB_NODELIST=node[3-5]", "SLURM_JOB_NUM_NODES=" + count, "SLURMD_NODENAME=node3"})
        .arguments;
  };
  EXPECT_THAT(again("3"), ElementsAre("srun", "--exclude=node3", "--nodes=1", "--ntasks=1", "orted", "-w", "x"));
  EXPECT_THAT(again("1"), ElementsAre("srun", "--nodes=1", "--ntasks=1", "orted", "-w", "x"));
}

TEST(LaunchRequest, VariablesAreReplacedByName) {
  std::vector<std::string> environment = {"A=1", "AB=2", "A=3"};
  set_variable(environment, "A=4");
  EXPECT_THAT(environment, ElementsAre("AB=2", "A=4"));
  set_variable(environment, "AB");
  EXPECT_THAT(environment, ElementsAre("A=4"));
}

TEST(LaunchedSteps, NamesOfCapsules) {
  EXPECT_EQ(launched_capsule("node2", 0), "node2");
  EXPECT_EQ(launched_capsule("node2", 3), "node2.launch3");
  EXPECT_EQ(launch_in_name("node2.launch3"), 3u);
  for (const char* const name :
       {"node2", "", "node2.launch", "node2.launchx", "node2.launch3x", "node2.launch99999999999"})
    EXPECT_EQ(launch_in_name(name), 0u) << name;
}

}  // namespace
}  // namespace icp::launch
