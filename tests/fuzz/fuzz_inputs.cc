// SPDX-License-Identifier: GPL-2.0-or-later
// fuzz_inputs SEEDS COUNT: frame_fuzz.cc's entry point on each seed, and on COUNT changes of them from a fixed random
// start. fuzz_inputs --make SEEDS: writes the seeds.
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

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

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

void change(std::string& text, const std::vector<std::string>& others, std::minstd_rand& random) {
  const auto below = [&](size_t n) { return n == 0 ? 0 : random() % n; };
  for (size_t changes = 1 + below(6); changes > 0; changes--) {
    const size_t at = below(text.size());
    switch (below(6)) {
      case 0:
        if (!text.empty()) text[at] = static_cast<char>(random());
        break;
      case 1:
        if (!text.empty()) text[at] = static_cast<char>(text[at] ^ 1 << below(8));
        break;
      case 2:
        text.erase(at, below(8));
        break;
      case 3:
        text.insert(at, std::string(1 + below(9), static_cast<char>(below(2) == 0 ? 0xff : random())));
        break;
      case 4:
        text += others[below(others.size())];
        break;
      default:
        text.insert(at, text.substr(below(text.size()), below(64)));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fputs("usage: fuzz_inputs SEEDS COUNT | fuzz_inputs --make SEEDS\n", stderr);
    return 2;
  }
  if (std::string(argv[1]) == "--make") {
    std::filesystem::create_directories(argv[2]);
    for (const auto& [name, text] : seeds()) std::ofstream(std::string(argv[2]) + "/" + name, std::ios::binary) << text;
    return 0;
  }
  std::vector<std::string> inputs;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    std::ifstream file(entry.path(), std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  if (inputs.empty()) {
    std::fprintf(stderr, "fuzz_inputs: no seeds in %s\n", argv[1]);
    return 1;
  }
  const auto run = [](const std::string& text) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  };
  for (const std::string& text : inputs) run(text);
  std::minstd_rand random(1);
  const unsigned long count = std::strtoul(argv[2], nullptr, 10);
  for (unsigned long i = 0; i < count; i++) {
    std::string text = inputs[random() % inputs.size()];
    change(text, inputs, random);
    run(text);
  }
  std::printf("%zu seeds, %lu changed inputs\n", inputs.size(), count);
  return 0;
}
