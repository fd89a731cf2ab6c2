// SPDX-License-Identifier: GPL-2.0-or-later
// The line of scontrol checkpoint: every abbreviation, every error line, every answer.
#include "coordinator/icp/scontrol_grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>

#include "coordinator/icp/job_id.h"
#include "coordinator/protocol/slurm_errors.h"

namespace icp {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

struct Known {
  const char* name;
  size_t least;
  net::Operation operation;
};

// Column "least length" of Slurm's table; where two names share a beginning, the first of the table wins.
const std::vector<Known> kKnown{{"able", 1, net::OP_ABLE},       {"disable", 1, net::OP_DISABLE},
                                {"enable", 2, net::OP_ENABLE},   {"create", 2, net::OP_CREATE},
                                {"requeue", 2, net::OP_REQUEUE}, {"vacate", 2, net::OP_VACATE},
                                {"restart", 3, net::OP_RESTART}, {"error", 2, net::OP_ERROR}};

std::string upper(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(c));
  return text;
}

TEST(ScontrolGrammar, EveryAbbreviation) {
  for (const Known& known : kKnown) {
    const std::string name = known.name;
    for (size_t length = 0; length <= name.size(); length++) {
      const std::string word = name.substr(0, length);
      const bool requeue = name == "restart" && length == 2;
      const net::Operation wanted = requeue ? net::OP_REQUEUE : length >= known.least ? known.operation : net::OP_NONE;
      EXPECT_EQ(scontrol_operation(word), wanted) << word;
      EXPECT_EQ(scontrol_operation(upper(word)), wanted) << word;
    }
    EXPECT_EQ(scontrol_operation(name + "x"), net::OP_NONE) << name;
  }
  for (const char* word : {"", "e", "c", "r", "v", "x", "complete", "abl e", " able", "enabled"})
    EXPECT_EQ(scontrol_operation(word), net::OP_NONE) << word;
}

TEST(ScontrolGrammar, ErrorLines) {
  struct Case {
    std::vector<std::string> words;
    std::vector<std::string> errors;
  };
  const std::vector<Case> cases{
      {{"checkpoint"}, {"too few arguments for keyword:checkpoint"}},
      {{"ch", "able"}, {"too few arguments for keyword:ch"}},
      {{"CHeck", "create", "1", "a", "b", "c"}, {"too many arguments for keyword:CHeck"}},
      {{"checkpoint", "able", "x"}, {"Invalid job step name"}},
      {{"checkpoint", "able", ""}, {"Invalid job step name"}},
      {{"checkpoint", "able", "1.x"}, {"Invalid job step name"}},
      {{"checkpoint", "able", "1."}, {"Invalid job step name"}},
      {{"checkpoint", "able", "1.2.3"}, {"Invalid job step name"}},
      {{"checkpoint", "able", "-1"}, {"Invalid job step name"}},
      {{"checkpoint", "able", "4294967296"}, {"Invalid job step name"}},
      {{"checkpoint", "nonsense", "x"}, {"Invalid job step name"}},  // the ID is looked at first
      {{"checkpoint", "e", "1"}, {"Invalid checkpoint operation: e"}},
      {{"checkpoint", "nonsense", "1"}, {"Invalid checkpoint operation: nonsense"}},
      {{"checkpoint", "a\033[2J", "1"}, {"Invalid checkpoint operation: a?[2J"}},
      {{"checkpoint", "create", "1", "Dir=x"},
       {"scontrol: error: Invalid input: Dir=x", "scontrol: error: Request aborted"}},
      {{"checkpoint", "create", "1", "MaxWait"},
       {"scontrol: error: Invalid input: MaxWait", "scontrol: error: Request aborted"}},
      {{"checkpoint", "create", "1", "MaxWait="},
       {"scontrol: error: Invalid input: MaxWait=", "scontrol: error: Request aborted"}},
      {{"checkpoint", "create", "1", "MaxWait=5s"},
       {"scontrol: error: Invalid input: MaxWait=5s", "scontrol: error: Request aborted"}},
      {{"checkpoint", "create", "1", "MaxWait=-5"},
       {"scontrol: error: Invalid input: MaxWait=-5", "scontrol: error: Request aborted"}},
      {{"checkpoint", "create", "1", "MaxWait=65536"},
       {"scontrol: error: Invalid input: MaxWait=65536", "scontrol: error: Request aborted"}},
      {{"checkpoint", "create", "1", "StickToNodes"},
       {"scontrol: error: Invalid input: StickToNodes", "scontrol: error: Request aborted"}},
      {{"checkpoint", "restart", "1", "MaxWait=5"},
       {"scontrol: error: Invalid input: MaxWait=5", "scontrol: error: Request aborted"}},
      {{"checkpoint", "restart", "1", "stic"},
       {"scontrol: error: Invalid input: stic", "scontrol: error: Request aborted"}},
      {{"checkpoint", "able", "1", "ImageDir=/x"},
       {"scontrol: error: Invalid input: ImageDir=/x", "scontrol: error: Request aborted"}},
  };
  for (const Case& test : cases)
    EXPECT_EQ(parse_scontrol_line(test.words).errors, test.errors) << testing::PrintToString(test.words);
  EXPECT_THAT(parse_scontrol_line({}).errors, ElementsAre("too few arguments for keyword:"));
}

TEST(ScontrolGrammar, Requests) {
  const auto request = [](std::vector<std::string> words) {
    words.insert(words.begin(), "checkpoint");
    const ScontrolLine line = parse_scontrol_line(words);
    EXPECT_THAT(line.errors, IsEmpty()) << testing::PrintToString(words);
    return line.request;
  };
  net::Request wanted;
  wanted.set_operation(net::OP_CREATE);
  wanted.set_job(12);
  wanted.set_max_wait_s(10);
  EXPECT_EQ(request({"cr", "12"}).SerializeAsString(), wanted.SerializeAsString());

  wanted.set_has_step(true);
  wanted.set_step(3);
  wanted.set_max_wait_s(77);
  wanted.set_image_dir("/a b=c");
  EXPECT_EQ(request({"create", "12.3", "maxwait=77", "IMAGEDIR=/a b=c"}).SerializeAsString(),
            wanted.SerializeAsString());
  EXPECT_EQ(request({"create", "12.3", "ImageDir=/a b=c", "MaxWait=77"}).SerializeAsString(),
            wanted.SerializeAsString());

  EXPECT_EQ(request({"vacate", "12.batch"}).step(), kBatchStep);
  EXPECT_EQ(request({"requeue", "12", "MaxWait=0"}).max_wait_s(), 10U);
  EXPECT_EQ(request({"re", "12", "MaxWait=65535"}).max_wait_s(), 65535U);
  EXPECT_EQ(request({"able", "0"}).job(), 0U);
  EXPECT_EQ(request({"able", "4294967295"}).job(), 4294967295U);
  EXPECT_EQ(request({"error", "12"}).max_wait_s(), 0U);

  const net::Request restart = request({"res", "12", "ImageDir=images", "sTiCk"});
  EXPECT_EQ(restart.operation(), net::OP_RESTART);
  EXPECT_EQ(restart.image_dir(), "images");
  EXPECT_TRUE(restart.stick_to_nodes());
  EXPECT_EQ(restart.max_wait_s(), 0U);
  EXPECT_FALSE(request({"restart", "12"}).stick_to_nodes());
}

TEST(ScontrolGrammar, Answers) {
  const auto answer = [](net::Operation operation, const net::Reply& reply) {
    const ScontrolAnswer found = scontrol_answer(operation, reply);
    return std::make_tuple(found.out, found.err, found.exit_code);
  };
  const net::Reply good;
  for (const net::Operation operation :
       {net::OP_CREATE, net::OP_VACATE, net::OP_REQUEUE, net::OP_RESTART, net::OP_ENABLE, net::OP_DISABLE})
    EXPECT_EQ(answer(operation, good), std::make_tuple("", "", 0));
  EXPECT_EQ(answer(net::OP_ABLE, good), std::make_tuple("Yes\n", "", 0));
  EXPECT_EQ(answer(net::OP_ERROR, good), std::make_tuple("error(0): \n", "", 0));

  setenv("TZ", "UTC", 1);
  tzset();
  net::Reply reply;
  reply.set_began_unix(1'000'000'000);
  EXPECT_EQ(answer(net::OP_ABLE, reply), std::make_tuple("Began at 2001-09-09T01:46:40\n", "", 0));
  unsetenv("TZ");
  tzset();
  reply.set_disabled(true);
  EXPECT_EQ(answer(net::OP_ABLE, reply), std::make_tuple("No\n", "", 0));

  reply = {};
  reply.set_last_code(5004);
  reply.set_text("no answer\nfrom node a");
  EXPECT_EQ(answer(net::OP_ERROR, reply), std::make_tuple("error(5004): no answer?from node a\n", "", 0));

  // Slurm's texts word for word, whatever icpctld adds; its own text where Slurm has none.
  reply = {};
  reply.set_code(net::kDisabled);
  EXPECT_EQ(answer(net::OP_ABLE, reply), std::make_tuple("No\n", "", 0));
  reply.set_text("more");
  EXPECT_EQ(answer(net::OP_CREATE, reply),
            std::make_tuple("", "scontrol_checkpoint error: Requested operation is presently disabled\n", 1));
  reply.set_code(2200);
  EXPECT_EQ(answer(net::OP_CREATE, reply), std::make_tuple("", "scontrol_checkpoint error: more\n", 1));
  reply.clear_text();
  EXPECT_EQ(answer(net::OP_CREATE, reply),
            std::make_tuple("", "scontrol_checkpoint error: The checkpoint failed\n", 1));
}

TEST(ScontrolGrammar, TextsOfErrors) {
  const std::map<uint32_t, std::string> texts{{0, "No error"},
                                              {114, "Operation already in progress"},
                                              {2002, "Access/permission denied"},
                                              {2017, "Invalid job id specified"},
                                              {2021, "Job/step already completing or completed"},
                                              {2024, "Job is pending execution"},
                                              {2036, "Requested operation not supported on this system"},
                                              {2037, "Requested operation is presently disabled"},
                                              {2088, "Job is not finished"},
                                              {5004, "Socket timed out on send/recv operation"},
                                              {2, "No such file or directory"}};
  for (const auto& [code, text] : texts) EXPECT_EQ(net::slurm_error_text(code), text);
}

TEST(JobId, Grammar) {
  EXPECT_EQ(parse_job_id("12"), (JobId{12, std::nullopt}));
  EXPECT_EQ(parse_job_id("12.0"), (JobId{12, 0}));
  EXPECT_EQ(parse_job_id("12.2147483647"), (JobId{12, INT32_MAX}));
  EXPECT_EQ(parse_job_id("12.batch"), (JobId{12, kBatchStep}));
  for (const char* text : {"", ".", "12.", ".0", "12.-5", "-1", "+1", " 1", "1 ", "0x1", "12.0.0", "12.b", "12.Batch",
                           "4294967296", "12.2147483648", "12_3"})
    EXPECT_EQ(parse_job_id(text), std::nullopt) << text;
  EXPECT_EQ(job_step_text(12, kBatchStep), "12.batch");
  EXPECT_EQ(job_step_text(12, 3), "12.3");
}

}  // namespace
}  // namespace icp
