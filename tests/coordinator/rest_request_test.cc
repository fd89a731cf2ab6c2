// SPDX-License-Identifier: GPL-2.0-or-later
// What HTTP requests mean, and what is refused of them.
#include "coordinator/icpctld/rest_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "coordinator/protocol/slurm_errors.h"

namespace icp {
namespace {

using testing::HasSubstr;

const std::string kRoot = "/slurm-icp/v1/";

unsigned refused(const std::string& method, const std::string& path, const std::string& body = {}) {
  try {
    parse_rest(method, kRoot + path, body);
  } catch (const RestError& error) {
    EXPECT_FALSE(error.text.empty());
    EXPECT_EQ(nlohmann::json::parse(rest_body(error))["errors"][0]["description"], error.text);
    return error.status;
  }
  return 200;
}

TEST(RestRequest, Questions) {
  EXPECT_EQ(parse_rest("GET", kRoot + "jobs", "").operation(), net::OP_STATUS);
  EXPECT_EQ(parse_rest("GET", kRoot + "jobs", "").job(), 0u);
  EXPECT_EQ(parse_rest("GET", kRoot + "ipc", "").operation(), net::OP_IPC);
  const net::Request job = parse_rest("GET", kRoot + "job/12.batch?versions=3", "");
  EXPECT_EQ(job.operation(), net::OP_STATUS);
  EXPECT_EQ(job.job(), 12u);
  EXPECT_TRUE(job.has_step());
  EXPECT_EQ(job.step(), -5);
  EXPECT_EQ(job.versions(), 3u);
  EXPECT_EQ(parse_rest("GET", kRoot + "job/12/history", "").operation(), net::OP_HISTORY);
  EXPECT_EQ(parse_rest("GET", kRoot + "job/12/ipc", "").operation(), net::OP_IPC);
}

TEST(RestRequest, Actions) {
  const net::Request create =
      parse_rest("POST", kRoot + "job/12/create", R"({"wait": true, "max_wait_s": 7, "image_dir": "/d"})");
  EXPECT_EQ(create.operation(), net::OP_CREATE);
  EXPECT_TRUE(create.wait());
  EXPECT_EQ(create.max_wait_s(), 7u);
  EXPECT_EQ(create.image_dir(), "/d");
  EXPECT_EQ(parse_rest("POST", kRoot + "job/12/move", R"({"nodes": "n[1-2]"})").nodes(), "n[1-2]");
  EXPECT_EQ(parse_rest("POST", kRoot + "job/12/disable", " ").operation(), net::OP_DISABLE);
  const net::Request drain = parse_rest("POST", kRoot + "nodes/n%5B1-2%5d/drain", R"({"reason": "hot"})");
  EXPECT_EQ(drain.nodes(), "n[1-2]");
  EXPECT_EQ(drain.reason(), "hot");
}

TEST(RestRequest, WhatIsRefused) {
  for (const char* path : {"", "job", "job/12/", "job/12/explode", "jobs/12", "nodes/n1", "../job/12"})
    EXPECT_EQ(refused("GET", path), 404u) << path;
  EXPECT_EQ(refused("GET", "job/12/create"), 405u);
  EXPECT_EQ(refused("POST", "jobs"), 405u);
  EXPECT_EQ(refused("DELETE", "job/12"), 405u);
  for (const char* path : {"job/0", "job/-1", "job/x", "job/12.", "job/99999999999", "jobs?versions=",
                           "jobs?versions=1001", "jobs?versions=-1", "jobs?all=1", "jobs?versions=1&versions=2"})
    EXPECT_EQ(refused("GET", path), 400u) << path;
  for (const char* body : {"[]", "7", "{", "{\"wait\": 1}", "{\"wait\": true, \"what\": 1}", "{\"max_wait_s\": -1}",
                           "{\"max_wait_s\": 4294967296}", "{\"max_wait_s\": \"7\"}", "{\"image_dir\": {}}",
                           "{\"nodes\": \"n1\"}", "{\"image_dir\": 7}", "{\"wait\": [[[[]]]]}"})
    EXPECT_EQ(refused("POST", "job/12/create", body), 400u) << body;
  EXPECT_EQ(refused("POST", "job/12/create", std::string(10'000, '[')), 400u);
  EXPECT_EQ(refused("POST", "job/12/create?wait=1"), 400u);
  for (const char* nodes : {"nodes/n%5/drain", "nodes/n%/drain", "nodes/n%zz/drain"})
    EXPECT_EQ(refused("POST", nodes), 400u);
}

TEST(RestRequest, AnswersAreAsSlurmsAre) {
  net::Reply reply;
  reply.set_code(net::kAccessDenied);
  EXPECT_EQ(rest_status(reply), 403u);
  net::Request request;
  request.set_operation(net::OP_CREATE);
  const auto json = nlohmann::json::parse(rest_body(request, reply));
  EXPECT_EQ(json["errors"][0]["error_number"], net::kAccessDenied);
  EXPECT_EQ(json["accepted"], false);
  EXPECT_TRUE(json["warnings"].empty());
  request.set_operation(net::OP_HISTORY);
  reply.Clear();
  reply.add_runs()->set_why("\xff odd");
  EXPECT_EQ(rest_status(reply), 200u);
  EXPECT_EQ(nlohmann::json::parse(rest_body(request, reply))["runs"].size(), 1u);
}

// The description knows each path, and no other.
TEST(RestRequest, PathsOfTheDescription) {
  std::ifstream file(ICP_SOURCE_DIR "/docs/openapi.yaml");
  std::stringstream text;
  text << file.rdbuf();
  std::istringstream lines(text.str());
  int paths = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("  /") || !line.ends_with(":")) continue;
    paths++;
    std::string path = line.substr(3, line.size() - 4);
    for (const auto& [name, value] : {std::pair("{job}", "12"), std::pair("{nodes}", "n1")})
      if (const size_t at = path.find(name); at != std::string::npos)
        path.replace(at, std::string_view(name).size(), value);
    EXPECT_TRUE(refused("GET", path) == 200 || refused("POST", path) == 200) << path;
  }
  EXPECT_EQ(paths, 13);
}

TEST(RestRequest, RandomTextsAreRefusedInASentence) {
  std::mt19937 random(20);
  const std::string letters = "{}[]\":,%?=/.0123456789abnwaitjobdrincreate\\\x01\xff";
  for (int i = 0; i < 20'000; i++) {
    std::string path = i % 2 == 0 ? "job/12/create" : "", body;
    for (size_t j = random() % 24; j > 0; j--) (i % 2 == 0 ? body : path) += letters[random() % letters.size()];
    try {
      parse_rest(i % 2 == 0 ? "POST" : "GET", kRoot + path, body);
    } catch (const RestError& error) {
      EXPECT_GE(error.status, 400u);
    }
  }
}

}  // namespace
}  // namespace icp
