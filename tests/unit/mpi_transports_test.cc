// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/mpi_transports.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <set>

namespace icp::spank {
namespace {

using ::testing::Contains;
using ::testing::IsEmpty;
using ::testing::Key;
using ::testing::Not;
using ::testing::Pair;

auto variables(std::string_view choice, bool bypass, const std::set<std::string>& set = {}) {
  return mpi_variables(choice, bypass, [&set](const std::string& name) { return set.contains(name); });
}

TEST(MpiTransports, TcpAlwaysAutoWithDevicesOffNever) {
  EXPECT_THAT(variables("tcp", false), Contains(Pair("UCX_TLS", "tcp,self,posix,sysv,cma")));
  EXPECT_THAT(variables("tcp", false), Contains(Pair("FI_PROVIDER", "tcp")));
  EXPECT_THAT(variables("tcp", false), Contains(Pair("OMPI_MCA_pml", "ob1")));
  EXPECT_EQ(variables("tcp", true), variables("tcp", false));
  EXPECT_EQ(variables("auto", true), variables("tcp", false));
  EXPECT_EQ(variables("", true), variables("auto", true));
  EXPECT_THAT(variables("auto", false), IsEmpty());
  EXPECT_THAT(variables("off", true), IsEmpty());
}

TEST(MpiTransports, WhatTheUserHasChosenStaysAndTheOthersAreSet) {
  const auto found = variables("tcp", true, {"UCX_NET_DEVICES", "OMPI_MCA_btl"});
  EXPECT_THAT(found, Not(Contains(Key("UCX_TLS"))));
  EXPECT_THAT(found, Not(Contains(Key("OMPI_MCA_pml"))));
  EXPECT_THAT(found, Contains(Key("FI_PROVIDER")));
  EXPECT_THAT(variables("tcp", true, {"FI_PROVIDER"}), Contains(Key("FI_MR_CACHE_MONITOR")));
}

TEST(MpiTransports, DevicesAreThoseOfTheKernelsClasses) {
  char name[] = "/tmp/icp_class_XXXXXX";
  ASSERT_NE(::mkdtemp(name), nullptr);
  const std::filesystem::path classes(name);
  EXPECT_FALSE(has_kernel_bypass(classes / "missing"));
  std::filesystem::create_directories(classes / "infiniband");
  std::filesystem::create_directories(classes / "net/eth0");
  EXPECT_FALSE(has_kernel_bypass(classes));
  std::filesystem::create_directories(classes / "infiniband/mlx5_0");
  EXPECT_TRUE(has_kernel_bypass(classes));
  std::filesystem::remove_all(classes);
}

TEST(MpiTransports, Grammar) {
  for (const char* good : {"tcp", "auto", "off"}) EXPECT_TRUE(is_mpi_choice(good));
  for (const char* bad : {"", "TCP", "tcp,", "none", "on"}) EXPECT_FALSE(is_mpi_choice(bad));
}

}  // namespace
}  // namespace icp::spank
