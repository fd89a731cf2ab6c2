// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/protocol/endpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/config.h"
#include "engine/base/error.h"

namespace icp {
namespace {

using std::chrono::milliseconds;

std::string parsed(const std::string& text, bool any_host = false) {
  std::string why;
  const auto endpoint = net::parse_endpoint(text, any_host, why);
  return endpoint ? to_text(*endpoint) : "no: " + why;
}

TEST(Endpoint, Forms) {
  EXPECT_EQ(parsed("host"), "host:6830");
  EXPECT_EQ(parsed("host:1"), "host:1");
  EXPECT_EQ(parsed("10.0.0.1:65535"), "10.0.0.1:65535");
  EXPECT_EQ(parsed("[fe80::1]:22"), "[fe80::1]:22");
  EXPECT_EQ(parsed("[::1]"), "[::1]:6830");
  EXPECT_EQ(parsed("fe80::1"), "[fe80::1]:6830");  // more than one colon: an address
  EXPECT_EQ(parsed(":77", true), ":77");
  EXPECT_EQ(parsed("", true), ":6830");
}

TEST(Endpoint, Refusals) {
  for (const char* text :
       {"host:0", "host:65536", "host:", "host:x", "host:1x", "host:-1", "host:99999999999999999999"})
    EXPECT_THAT(parsed(text), testing::HasSubstr("is not a port, 1 to 65535")) << text;
  for (const char* text : {"", ":77", "a b", "user@host", "a/b", "[]:5"})
    EXPECT_THAT(parsed(text), testing::HasSubstr("is not host or host:port")) << text;
  for (const char* text : {"[::1", "[::1]22", "["})
    EXPECT_THAT(parsed(text), testing::HasSubstr("is not [address]:port")) << text;
}

TEST(Endpoint, Lists) {
  std::string why;
  const auto two = net::parse_endpoints(" a:1 , b", why);
  ASSERT_TRUE(two);
  ASSERT_EQ(two->size(), 2u);
  EXPECT_EQ(to_text((*two)[1]), "b:6830");
  for (const char* text : {"", ",", "a,", "a,,b", "a:0,b"}) EXPECT_FALSE(net::parse_endpoints(text, why)) << text;
}

// ---- the keys of icp.yaml that are icpctld's ----------------------------------------------------------

std::string complaint(const std::string& text) {
  try {
    Config::parse(text, "icp.yaml");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
  return "none";
}

TEST(CoordinatorConfig, ExampleHoldsTheDefaults) {
  const Config shipped = Config::load(ICP_SOURCE_DIR "/config/icp.yaml", true), built_in;
  EXPECT_EQ(shipped.coordinators.size(), 0u);
  EXPECT_EQ(shipped.coordinator_user, built_in.coordinator_user);
  EXPECT_EQ(shipped.munge_socket, built_in.munge_socket);
  EXPECT_EQ(shipped.on_demand, built_in.on_demand);
  EXPECT_EQ(to_text(shipped.listen), to_text(built_in.listen));
  EXPECT_EQ(shipped.state_dir, built_in.state_dir);
  EXPECT_EQ(shipped.coordinator_log, built_in.coordinator_log);
  EXPECT_EQ(shipped.prepare_timeout, built_in.prepare_timeout);
  EXPECT_EQ(shipped.stop_timeout, built_in.stop_timeout);
  EXPECT_EQ(shipped.write_timeout, built_in.write_timeout);
  EXPECT_EQ(shipped.max_writers, built_in.max_writers);
  EXPECT_EQ(shipped.jitter, built_in.jitter);
  EXPECT_EQ(shipped.site_script, built_in.site_script);
  EXPECT_FALSE(shipped.metrics);
}

TEST(CoordinatorConfig, ReadsEveryKey) {
  const Config config = Config::parse(
      "coordinator: one, two:7000\ncoordinator_user: icp\nmunge_socket: /run/m\non_demand: yes\nlisten: 10.0.0.1:7\n"
      "state_dir: /var/x\ncoordinator_log: syslog\nprepare_timeout: 5s\nstop_timeout: 0.5s\nwrite_timeout: 2h\n"
      "max_writers: 0\njitter: 50\nsite_script: /etc/x.sh\nmetrics: 127.0.0.1:9\n",
      "icp.yaml");
  ASSERT_EQ(config.coordinators.size(), 2u);
  EXPECT_EQ(to_text(config.coordinators[1]), "two:7000");
  EXPECT_EQ(config.coordinator_user, "icp");
  EXPECT_EQ(config.munge_socket, "/run/m");
  EXPECT_TRUE(config.on_demand);
  EXPECT_EQ(to_text(config.listen), "10.0.0.1:7");
  EXPECT_EQ(config.state_dir, "/var/x");
  EXPECT_EQ(config.coordinator_log, "syslog");
  EXPECT_EQ(config.prepare_timeout, milliseconds(5000));
  EXPECT_EQ(config.stop_timeout, milliseconds(500));
  EXPECT_EQ(config.write_timeout, milliseconds(7'200'000));
  EXPECT_EQ(config.max_writers, 0u);
  EXPECT_EQ(config.jitter, 50u);
  EXPECT_EQ(config.site_script, "/etc/x.sh");
  ASSERT_TRUE(config.metrics);
  EXPECT_EQ(to_text(*config.metrics), "127.0.0.1:9");
  EXPECT_EQ(to_text(Config::parse("listen: '*:5'", "f").listen), ":5");
}

TEST(CoordinatorConfig, ErrorsNameFileLineAndKey) {
  EXPECT_EQ(complaint("jitter: 51\n"), "icp.yaml:1: jitter: '51' is not a number from 0 to 50");
  EXPECT_EQ(complaint("jitter: 10%\n"), "icp.yaml:1: jitter: '10%' is not a number from 0 to 50");
  EXPECT_EQ(complaint("\nmax_writers: -1\n"), "icp.yaml:2: max_writers: '-1' is not a number from 0 to 1000000");
  EXPECT_EQ(complaint("listen: host:70000\n"), "icp.yaml:1: listen: '70000' in 'host:70000' is not a port, 1 to 65535");
  EXPECT_THAT(complaint("listen: ''\n"), testing::StartsWith("icp.yaml:1: listen: "));
  EXPECT_THAT(complaint("stop_timeout: 0s\n"), testing::StartsWith("icp.yaml:1: stop_timeout: "));
  EXPECT_THAT(complaint("write_timeout: -5s\n"), testing::StartsWith("icp.yaml:1: write_timeout: "));
  EXPECT_THAT(complaint("a: b\nprepare_timeout: soon\n"), testing::StartsWith("icp.yaml:1: a: unknown key"));
  EXPECT_EQ(complaint("state_dir: here\n"), "icp.yaml:1: state_dir: 'here' is not an absolute path");
  EXPECT_EQ(complaint("site_script: x.sh\n"), "icp.yaml:1: site_script: 'x.sh' is not an absolute path");
  EXPECT_EQ(complaint("munge_socket: m\n"), "icp.yaml:1: munge_socket: 'm' is not an absolute path");
  EXPECT_EQ(complaint("coordinator_log: out\n"), "icp.yaml:1: coordinator_log: 'out' is not an absolute path");
  EXPECT_EQ(complaint("coordinator_user: ''\n"), "icp.yaml:1: coordinator_user: a user is needed");
  EXPECT_EQ(complaint("on_demand: maybe\n"), "icp.yaml:1: on_demand: 'maybe' is not one of no, yes");
  EXPECT_THAT(complaint("coordinator: a,,b\n"), testing::StartsWith("icp.yaml:1: coordinator: "));
  EXPECT_THAT(complaint("metrics: [1, 2]\n"), testing::StartsWith("icp.yaml:1: metrics: a single value is needed"));
}

}  // namespace
}  // namespace icp
