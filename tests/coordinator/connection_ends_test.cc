// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/connection_ends.h"

#include <gtest/gtest.h>

#include <chrono>

namespace icp {
namespace {

net::ConnectionEnd end(const std::string& local, uint32_t local_port, const std::string& remote, uint32_t remote_port) {
  net::ConnectionEnd out;
  out.set_local_ip(local);
  out.set_local_port(local_port);
  out.set_remote_ip(remote);
  out.set_remote_port(remote_port);
  return out;
}

ConnectionEnds::List list(std::initializer_list<net::ConnectionEnd> ends) {
  ConnectionEnds::List out;
  for (const auto& one : ends) *out.Add() = one;
  return out;
}

TEST(ConnectionEnds, FindsTheOtherEndOnOtherNodesOnly) {
  ConnectionEnds ends;
  ends.set("a", list({end("A", 1, "B", 2), end("A", 5, "A", 6), end("A", 6, "A", 5), end("A", 9, "X", 9)}));
  ends.set("b", list({end("B", 2, "A", 1), end("B", 3, "C", 4)}));
  EXPECT_EQ(ends.nodes(), 2u);
  const auto of_a = ends.others_of("a");  // its own loop is not among them
  ASSERT_EQ(of_a.size(), 1);
  EXPECT_EQ(of_a[0].local_ip(), "B");
  ASSERT_EQ(ends.others_of("b").size(), 1);
  EXPECT_EQ(ends.others_of("b")[0].local_port(), 1u);
  EXPECT_TRUE(ends.others_of("nobody").empty());
}

TEST(ConnectionEnds, ScopesAndPortsMatter) {
  ConnectionEnds ends;
  net::ConnectionEnd one = end("A", 1, "B", 2), other = end("B", 2, "A", 1);
  one.set_remote_scope(3);
  ends.set("a", list({one}));
  ends.set("b", list({other}));
  EXPECT_TRUE(ends.others_of("a").empty());
  other.set_local_scope(3);
  ends.set("b", list({other}));
  EXPECT_EQ(ends.others_of("a").size(), 1);
}

TEST(ConnectionEnds, SetReplaces) {
  ConnectionEnds ends;
  ends.set("a", list({end("A", 1, "B", 2)}));
  ends.set("b", list({end("B", 2, "A", 1)}));
  ends.set("b", {});
  EXPECT_TRUE(ends.others_of("a").empty());
}

// What one agent repeats must not be multiplied by what another one repeats.
TEST(ConnectionEnds, RepeatedEndsAreNotMultiplied) {
  ConnectionEnds ends;
  ConnectionEnds::List a, b;
  for (int i = 0; i < 3000; i++) {
    *a.Add() = end("A", 1, "B", 2);
    *b.Add() = end("B", 2, "A", 1);
  }
  ends.set("a", a);
  ends.set("b", b);
  EXPECT_LE(ends.others_of("a").size(), 3000);
}

// All to all between 300 nodes, while their processes are stopped.
TEST(ConnectionEnds, ManyNodesAreQuick) {
  constexpr uint32_t kNodes = 300;
  ConnectionEnds ends;
  for (uint32_t i = 0; i < kNodes; i++) {
    ConnectionEnds::List own;
    for (uint32_t j = 0; j < kNodes; j++) {
      if (i != j) *own.Add() = end(std::to_string(i), 1000 + j, std::to_string(j), 1000 + i);
    }
    ends.set(std::to_string(i), own);
  }
  const auto begin = std::chrono::steady_clock::now();
  for (uint32_t i = 0; i < kNodes; i++) ASSERT_EQ(ends.others_of(std::to_string(i)).size(), int{kNodes - 1});
  // Looking at every end of every node for each node takes 20 s here.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

}  // namespace
}  // namespace icp
