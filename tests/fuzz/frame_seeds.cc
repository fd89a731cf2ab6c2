// SPDX-License-Identifier: GPL-2.0-or-later
// The seeds of frame_fuzz.cc.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "coordinator/protocol/coordinator.pb.h"
#include "tests/fuzz/inputs.h"

namespace {

using namespace icp;

void record(std::string& out, int peer, int what, const std::string& bytes = {}) {
  out.push_back(static_cast<char>(what << 2 | peer));
  out.push_back(static_cast<char>(bytes.size() >> 8));
  out.push_back(static_cast<char>(bytes.size() & 0xff));
  out += bytes;
}

std::string hello(const std::string& node, uint32_t nodes, bool restoring = false, uint64_t interval_ms = 0) {
  net::ToCoordinator message;
  net::AgentHello& agent = *message.mutable_agent();
  agent.set_job(7);
  agent.set_node(node);
  agent.set_nodes(nodes);
  agent.set_image("/image");
  agent.set_restoring(restoring);
  agent.set_interval_ms(interval_ms);
  agent.set_highest_version(3);
  agent.add_recent()->set_version(2);
  return message.SerializeAsString();
}

std::string done(net::Phase phase, const std::string& error = {}) {
  net::ToCoordinator message;
  net::PhaseDone& out = *message.mutable_done();
  out.set_round(1);
  out.set_phase(phase);
  out.set_error(error);
  out.mutable_numbers()->set_version(4);
  net::ConnectionEnd& end = *out.add_ends();
  end.set_local_ip("AAAA");
  end.set_remote_ip("BBBB");
  return message.SerializeAsString();
}

std::string ready(uint32_t phase) {
  net::ToCoordinator message;
  message.mutable_ready()->set_phase(phase);
  message.mutable_ready()->set_version(3);
  message.mutable_ready()->add_addresses()->set_old_ip("AAAA");
  return message.SerializeAsString();
}

std::map<std::string, std::string> seeds() {
  std::map<std::string, std::string> all;
  std::string& one = all["one_node"];
  record(one, 0, 0, hello("a", 1));
  record(one, 0, 3);
  record(one, 0, 0, done(net::COMMIT));
  record(one, 0, 5);
  record(one, 0, 2);
  std::string& two = all["two_nodes"];
  record(two, 0, 0, hello("a", 2));
  record(two, 1, 0, hello("b", 2));
  record(two, 1, 4);
  net::ToCoordinator survey;
  survey.mutable_survey()->set_round(1);
  survey.mutable_survey()->add_ends()->set_local_port(5);
  record(two, 0, 0, survey.SerializeAsString());
  record(two, 1, 0, survey.SerializeAsString());
  for (const net::Phase phase : {net::PREPARE, net::STOP, net::COLLECT, net::WRITE, net::COMMIT}) {
    record(two, 0, 0, done(phase));
    record(two, 1, 0, done(phase, phase == net::COMMIT ? "disk full" : ""));
  }
  std::string& restart = all["restart"];
  record(restart, 0, 0, hello("a", 2, true));
  record(restart, 1, 0, hello("b", 2, true));
  for (uint32_t phase = 1; phase <= 3; phase++) {
    record(restart, 0, 0, ready(phase));
    record(restart, 1, 0, ready(phase));
  }
  std::string& timer = all["timer"];
  record(timer, 0, 0, hello("a", 1, false, 1));
  for (int i = 0; i < 3; i++) record(timer, 0, 5);
  record(timer, 1, 0, hello("a", 1, false, 1));
  std::string& raw = all["raw"];
  record(raw, 0, 1, std::string("\0\0\0\5hello", 9));
  record(raw, 0, 1, std::string("\xff\xff\xff\xff", 4));
  std::string& other = all["other_messages"];
  record(other, 2, 0, hello("c", 1));
  net::ToCoordinator message;
  message.mutable_ipc()->add_objects()->set_kind("shm");
  record(other, 2, 0, message.SerializeAsString());
  message.mutable_version()->mutable_numbers()->set_version(9);
  record(other, 2, 0, message.SerializeAsString());
  message.mutable_end()->set_completed(true);
  record(other, 2, 0, message.SerializeAsString());
  message.mutable_survey()->add_ends()->set_local_port(5);
  record(other, 2, 0, message.SerializeAsString());
  return all;
}

}  // namespace

std::map<std::string, std::string> fuzz_seeds() { return seeds(); }
