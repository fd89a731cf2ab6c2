// SPDX-License-Identifier: GPL-2.0-or-later
// Where a job's cgroups are, as each Slurm lays them out.
#include "coordinator/icpstepd/cgroups.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include "temp_dir.h"

namespace icp {
namespace {

namespace fs = std::filesystem;
using test::TempDir;
constexpr const char* kSluid = "s0DVAX0C1JZ000";

std::vector<std::string> found(const std::string& root, const JobName& job) {
  std::vector<std::string> names;
  for (const std::string& path : job_directories(root, "n1", 1000, job)) names.push_back(path.substr(root.size() + 1));
  std::sort(names.begin(), names.end());
  return names;
}

TEST(Cgroups, WhatIsAboveAJob) {
  EXPECT_EQ(above_job("/slurm_n1/uid_1000/job_7", 7), "/slurm_n1");
  EXPECT_EQ(above_job("/slurm_n1/uid_1000/job_7/step_0", 7), "/slurm_n1");
  EXPECT_EQ(above_job("/system.slice/n1_slurmstepd.scope/job_7/step_0/slurm", 7), "/system.slice/n1_slurmstepd.scope");
  const std::string sluid = std::string("/cluster.slice/n1_slurmstepd.scope/") + kSluid + "/step_batch/slurm";
  EXPECT_EQ(above_job(sluid, 7), "/cluster.slice/n1_slurmstepd.scope");
}

TEST(Cgroups, TheJobOfAPath) {
  EXPECT_EQ(job_directory("/slurm_n1/uid_1000/job_7/step_0/task_1"), "/slurm_n1/uid_1000/job_7");
  EXPECT_EQ(job_directory("/slurm_n1/uid_1000/job_70"), "/slurm_n1/uid_1000/job_70");
  const std::string job = std::string("/system.slice/n1_slurmstepd.scope/") + kSluid;
  EXPECT_EQ(job_directory(job + "/step_0/user/task_1"), job);
  EXPECT_EQ(job_directory("/user.slice"), std::nullopt);
  EXPECT_EQ(job_directory("/step_0"), std::nullopt);
}

TEST(Cgroups, OtherPlacesHaveNoJob) {
  EXPECT_EQ(above_job("/", 7), std::nullopt);
  EXPECT_EQ(above_job("/step_0", 7), std::nullopt);
  EXPECT_EQ(above_job("/system.slice/n1_slurmstepd.scope/system", 7), std::nullopt);
  EXPECT_EQ(above_job("/slurm_n1/uid_1000/job_70", 7), std::nullopt);
}

TEST(Cgroups, Version1) {
  const TempDir root;
  fs::create_directories(root.path() + "/freezer/slurm_n1/uid_1000/job_7/step_0");
  fs::create_directories(root.path() + "/memory/slurm/uid_1000/job_7");
  fs::create_directories(root.path() + "/freezer/slurm_n2/uid_1000/job_7");
  const std::vector<std::string> both{"freezer/slurm_n1/uid_1000/job_7", "memory/slurm/uid_1000/job_7"};
  EXPECT_EQ(found(root.path(), {7, ""}), both);
}

TEST(Cgroups, Version2ByNumberAndBySluid) {
  const TempDir root;
  const std::string scope = "system.slice/n1_slurmstepd.scope/";
  fs::create_directories(root.path() + "/" + scope + "job_7/step_0");
  fs::create_directories(root.path() + "/" + scope + kSluid + "/step_0");
  fs::create_directories(root.path() + "/system.slice/n2_slurmstepd.scope/job_7");
  EXPECT_EQ(found(root.path(), {7, ""}), std::vector{scope + "job_7"});
  EXPECT_EQ(found(root.path(), {8, kSluid}), std::vector{scope + kSluid});
  EXPECT_EQ(found(root.path(), {8, ""}), std::vector<std::string>{});
}

TEST(Cgroups, ASliceOfTheAdministrators) {
  const TempDir root;
  const std::string job = std::string("lxc/vm/cluster.slice/n1_slurmstepd.scope/") + kSluid;
  fs::create_directories(root.path() + "/" + job);
  EXPECT_EQ(found(root.path(), {7, kSluid}), std::vector{job});
}

TEST(Cgroups, TheSluidIsAName) {
  ::setenv("SLURM_JOB_SLUID", kSluid, 1);
  EXPECT_EQ(JobName::of_environment(7).sluid, kSluid);
  ::setenv("SLURM_JOB_SLUID", "../../user.sli", 1);
  EXPECT_EQ(JobName::of_environment(7).sluid, "");
  ::unsetenv("SLURM_JOB_SLUID");
  EXPECT_EQ(JobName::of_environment(7).sluid, "");
}

// ---- whose places are whose ----------------------------------------------------------------------------------------

std::string text_of(const std::optional<std::vector<CgroupPlace>>& places) {
  if (!places) return "elsewhere";
  std::string text;
  for (const CgroupPlace& place : *places) text += place.controllers + ":" + place.path + " ";
  return text;
}

TEST(Cgroups, PlacesInAJobOfVersion1) {
  const std::vector<std::string> directories{"/sys/fs/cgroup/freezer/slurm_n1/uid_1000/job_7",
                                             "/sys/fs/cgroup/memory/slurm_n1/uid_1000/job_7"};
  const std::vector<CgroupPlace> agent{{"freezer", "/slurm_n1"}, {"memory", "/slurm_n1"}, {"name=systemd", "/slurmd"}};
  const auto groups = groups_of_job(directories, agent);
  const std::string task = "/slurm_n1/uid_1000/job_7/step_0/task_0";
  EXPECT_EQ(text_of(places_in_job({{"freezer", task}, {"memory", task}, {"name=systemd", "/slurmd"}}, groups, 7)),
            "freezer:" + task + " memory:" + task + " ");
  EXPECT_EQ(text_of(places_in_job({{"freezer", task}, {"memory", "/slurm_n1/uid_1000/job_70/step_0"}}, groups, 7)),
            "elsewhere");
  EXPECT_EQ(text_of(places_in_job({{"freezer", "/user.slice/job_7"}, {"memory", task}}, groups, 7)), "elsewhere");
  EXPECT_EQ(text_of(places_in_job({{"freezer", "/"}, {"memory", "/"}}, groups, 7)), "elsewhere");
  EXPECT_EQ(text_of(places_in_job(agent, groups, 7)), "elsewhere");
}

TEST(Cgroups, PlacesInAJobOfVersion2) {
  for (const std::string& name : {std::string("job_7"), std::string(kSluid)}) {
    const std::string job = "/system.slice/n1_slurmstepd.scope/" + name;
    const auto groups = groups_of_job({}, {{"", job + "/step_0/slurm"}});
    ASSERT_EQ(groups.size(), 1u);
    EXPECT_EQ(groups[0].path, job);
    EXPECT_EQ(text_of(places_in_job({{"", job + "/step_0/user/task_0"}}, groups, 7)),
              ":" + job + "/step_0/user/task_0 ");
    EXPECT_EQ(text_of(places_in_job({{"", job + "0/step_0/user/task_0"}}, groups, 7)), "elsewhere");
    EXPECT_EQ(text_of(places_in_job({{"", "/user.slice/user@1000.service/job_7/x"}}, groups, 7)), "elsewhere");
  }
}

TEST(Cgroups, PlacesWhereSlurmHasNoGroups) {
  const auto groups = groups_of_job({}, {{"", "/system.slice/slurmd.service"}});
  EXPECT_EQ(text_of(places_in_job({{"", "/system.slice/slurmd.service"}}, groups, 7)), "");
  EXPECT_EQ(text_of(places_in_job({{"", "/slurm/uid_1/job_8/step_0"}}, groups, 7)), "elsewhere");
}

}  // namespace
}  // namespace icp
