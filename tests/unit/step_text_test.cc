// SPDX-License-Identifier: GPL-2.0-or-later
// What icp jobs, status and ipc make of icpctld's answers.
#include "coordinator/icp/step_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "coordinator/icp/step_json.h"

namespace icp {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kNow = 1'800'000'000'000;  // ms

net::Reply example() {
  net::Reply reply;
  net::StepStatus& step = *reply.add_steps();
  step.set_job(12);
  step.set_step(-5);
  step.set_uid(0);
  step.set_restarts(2);
  step.set_image("/images/12.batch");
  step.add_nodes("n1");
  step.set_nodes_expected(2);
  step.set_running(true);
  step.set_interval_ms(600'000);
  step.set_next_unix_ms(kNow + 200'000);
  step.set_versions_total(9);
  net::VersionRecord& version = *step.add_versions();
  version.set_nodes(2);
  version.mutable_numbers()->set_version(9);
  version.mutable_numbers()->set_taken_unix_ns((kNow - 400'000) * 1'000'000);
  version.mutable_numbers()->set_stop_ns(14'000'000);
  version.mutable_numbers()->set_total_ns(24'500'000);
  version.mutable_numbers()->set_bytes(1'153'434);
  version.mutable_numbers()->set_pages(258);
  version.mutable_numbers()->set_processes(4);
  version.mutable_numbers()->set_tracker("userfaultfd");
  return reply;
}

TEST(StepText, RoughDuration) {
  EXPECT_EQ(rough_duration(0), "0 s");
  EXPECT_EQ(rough_duration(499), "0 s");
  EXPECT_EQ(rough_duration(59'499), "59 s");
  EXPECT_EQ(rough_duration(59'500), "1 min");
  EXPECT_EQ(rough_duration(200'000), "3 min 20 s");
  EXPECT_EQ(rough_duration(7'500'000), "2 h 5 min");
  EXPECT_EQ(rough_duration(90'000'000), "1 d 1 h");
  EXPECT_EQ(rough_duration(UINT64_MAX), "213503982334 d 14 h");
}

TEST(StepText, Status) {
  net::Reply reply = example();
  std::string text = steps_text(reply, kNow);
  EXPECT_THAT(text, HasSubstr("12.batch: running, user root, 2 restarts\n"));
  EXPECT_THAT(text, HasSubstr("  image     /images/12.batch\n"));
  EXPECT_THAT(text, HasSubstr("  nodes     1 of 2 connected: n1\n"));
  reply.mutable_steps(0)->add_nodes("n2");  // was on n2, has been restored on n1
  for (const char* host : {"n1", "n1"}) reply.mutable_steps(0)->add_hosts(host);
  EXPECT_THAT(steps_text(reply, kNow), HasSubstr("  nodes     2 of 2 connected: n1 n2 (on n1)\n"));
  EXPECT_THAT(text, HasSubstr("  interval  10m\n"));
  EXPECT_THAT(text, HasSubstr(", in 3 min 20 s\n"));
  EXPECT_THAT(text, HasSubstr("  versions  9, the last 1 of them:\n"));
  EXPECT_THAT(text, testing::ContainsRegex(" 9 .* 2 +4 +258 +1.1 MiB +14.0 ms +24.5 ms +incremental +userfaultfd\n"));
  EXPECT_THAT(text, Not(HasSubstr("now ")));
  EXPECT_THAT(text, Not(HasSubstr("last   ")));

  net::StepStatus& step = *reply.mutable_steps(0);
  step.set_phase(net::WRITE);
  step.set_round_began_unix_ms(kNow - 3200);
  step.set_disabled(true);
  step.set_last_code(5004);
  step.set_interval_ms(0);
  text = steps_text(reply, kNow);
  EXPECT_THAT(text, HasSubstr("12.batch: running, disabled, "));
  EXPECT_THAT(text, HasSubstr("  now       writing, for 3.20 s\n"));
  EXPECT_THAT(text, HasSubstr("  last      error(5004): Socket timed out on send/recv operation\n"));
  EXPECT_THAT(text, HasSubstr("none, versions on request"));

  step.set_running(false);
  text = steps_text(reply, kNow);
  EXPECT_THAT(text, HasSubstr("12.batch: ended"));
  EXPECT_THAT(text, Not(HasSubstr("connected")));
}

TEST(StepText, TableOfJobs) {
  net::Reply reply = example();
  EXPECT_THAT(steps_table(reply, kNow),
              testing::ContainsRegex("12.batch +root +running +1/2 +10m +9 +20[-0-9]+ [:0-9]+ +in 3 min 20 s +-\n"));
  net::StepStatus& step = *reply.mutable_steps(0);
  step.set_last_code(2200);
  step.set_last_error("a \033[31mred\nline");
  EXPECT_THAT(steps_table(reply, kNow), HasSubstr("error(2200): a ?[31mred?line\n"));
  step.set_phase(net::COMMIT);
  EXPECT_THAT(steps_table(reply, kNow), testing::ContainsRegex("in 3 min 20 s +committing\n"));
  step.set_nodes_expected(1);
  EXPECT_THAT(steps_table(reply, kNow), testing::ContainsRegex("in 3 min 20 s +under way\n"));
  step.set_phase(net::STOP);
  step.set_next_unix_ms(kNow - 1);
  EXPECT_THAT(steps_table(reply, kNow), testing::ContainsRegex("now +stopping\n"));
}

// What a hostile or newer icpctld may send: printed, harmless.
TEST(StepText, ExtremeValues) {
  net::Reply reply = example();
  net::StepStatus& step = *reply.mutable_steps(0);
  step.set_image("/a\033]0;x\007\xc2\x9b");
  step.set_interval_ms(UINT64_MAX);
  step.set_next_unix_ms(UINT64_MAX);
  step.set_round_began_unix_ms(UINT64_MAX);
  step.set_phase(static_cast<net::Phase>(99));
  step.set_uid(UINT32_MAX);
  step.mutable_versions(0)->mutable_numbers()->set_taken_unix_ns(UINT64_MAX);
  for (const std::string& text : {steps_text(reply, kNow), steps_table(reply, kNow)}) {
    EXPECT_EQ(text.find('\033'), std::string::npos);
    EXPECT_THAT(text, HasSubstr("?"));
  }
  EXPECT_EQ(steps_json(reply)[0]["phase"], "?");
}

TEST(StepText, Ipc) {
  net::Reply reply;
  net::NodeIpc& node = *reply.add_ipc();
  node.set_job(12);
  node.set_step(0);
  node.set_uid(0);
  node.set_node("n1");
  net::IpcObject& object = *node.add_objects();
  object.set_kind("shm");
  object.set_key(0x4d);
  object.set_id(32768);
  object.set_bytes(4096);
  object.set_attached(2);
  object.add_attached_pids(321);
  object.add_attached_pids(322);
  object.set_mode(0600);
  object.set_creator_pid(321);
  object.set_created_unix(1'800'000'000);
  net::IpcObject& queue = *node.add_objects();
  queue.set_kind("msg");
  const std::string table = ipc_table(reply);
  EXPECT_THAT(table, testing::ContainsRegex(
                         "12.0 +n1 +root +shm +0x0000004d +32768 +4.0 KiB +2 +600 +321 +20[-0-9]+ [:0-9]+ +321 322\n"));
  EXPECT_THAT(table, testing::ContainsRegex("12.0 +n1 +root +msg +private +0 +0 B +- +000 +- +- +-\n"));
  const nlohmann::json json = ipc_json(reply);
  EXPECT_EQ(json[0]["node"], "n1");
  EXPECT_EQ(json[0]["objects"][0]["attached"], 2);
  EXPECT_EQ(json[0]["objects"][0]["attached_pids"], nlohmann::json::array({321, 322}));
}

TEST(StepText, Json) {
  const nlohmann::json json = steps_json(example());
  ASSERT_EQ(json.size(), 1U);
  EXPECT_EQ(json[0]["name"], "12.batch");
  EXPECT_EQ(json[0]["phase"], "idle");
  EXPECT_EQ(json[0]["nodes"], nlohmann::json::array({"n1"}));
  EXPECT_EQ(json[0]["versions"][0]["bytes_written"], 1'153'434);
  EXPECT_EQ(json[0]["versions"][0]["version"], 9);
}

}  // namespace
}  // namespace icp
