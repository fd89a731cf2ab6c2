// SPDX-License-Identifier: GPL-2.0-or-later
// libFuzzer: bytes of agents on three connections, from the frame to the steps and the catalog.
//
// The input is a list of records: one byte (bits 0-1: connection; 2-4: what happens, see below), two bytes of length,
// big endian, and that many bytes, or what is left. The bytes are a message of coordinator.proto, to which the harness
// gives its frame and MAC, since no fuzzer guesses a MAC; or, raw, bytes of the connection as they are.
#include <spdlog/spdlog.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/icpctld/steps.h"
#include "coordinator/protocol/frame.h"
#include "engine/base/error.h"
#include "tests/unit/temp_dir.h"

namespace {

using namespace icp;
using std::chrono::milliseconds;

enum What { kFrame, kRaw, kLeave, kCreate, kKill, kTime };
constexpr size_t kMostSent = 64 << 20;  // bytes that one input may make icpctld send: each message has a bound

struct Peer {
  net::FrameWriter writer{net::Key{}};
  net::FrameReader reader{net::Key{}, net::kMaxToCoordinator};
  std::shared_ptr<Step> step;
  std::string node;
};

// One icpctld without its socket.
class World {
 public:
  World() {
    config_.jitter = 50;
    config_.max_writers = 1;
    config_.stop_timeout = milliseconds(1);
    spdlog::set_level(spdlog::level::off);
    catalog_.emplace(dir_.path());
  }

  void play(std::string_view input) {
    steps_.emplace(io_, config_, *catalog_);
    sent_ = 0;
    while (!input.empty()) {
      const auto head = static_cast<unsigned char>(input[0]);
      input.remove_prefix(1);
      size_t length = 0;
      for (int i = 0; i < 2 && !input.empty(); i++, input.remove_prefix(1))
        length = length << 8 | static_cast<unsigned char>(input[0]);
      const std::string_view bytes = input.substr(0, length);
      input.remove_prefix(bytes.size());
      happen(peers_[head & 3], static_cast<What>(head >> 2 & 7), bytes);
      if (sent_ > kMostSent) std::abort();
    }
    for (Peer& peer : peers_) drop(peer);
    if (!steps_->all().empty() || steps_->rounds_under_way() != 0) std::abort();
    run();
    steps_.reset();
    catalog_->forget(-1);
  }

 private:
  // As server.cc has it.
  void happen(Peer& peer, What what, std::string_view bytes) {
    try {
      switch (what) {
        case kFrame:
          peer.reader.feed(peer.writer.frame(in_round(peer, bytes)));
          return read(peer);
        case kRaw:
          peer.reader.feed(bytes);
          return read(peer);
        case kLeave:
          return drop(peer);
        case kCreate:
        case kKill: {
          VersionRequest wanted;
          wanted.kill = what == kKill;
          if (peer.step) steps_->create(peer.step, wanted);
          return;
        }
        default:
          return run();
      }
    } catch (const Error&) {
      drop(peer);
    }
  }

  // Round 1 stands for the one under way, whose number comes from the clock.
  static std::string in_round(const Peer& peer, std::string_view bytes) {
    std::string payload(bytes);
    net::ToCoordinator message;
    if (!peer.step || !peer.step->round || !message.ParseFromString(payload)) return payload;
    const uint64_t round = peer.step->round->id();
    if (message.has_done() && message.done().round() == 1) message.mutable_done()->set_round(round);
    if (message.has_survey() && message.survey().round() == 1) message.mutable_survey()->set_round(round);
    return message.SerializeAsString();
  }

  void read(Peer& peer) {
    while (const auto payload = peer.reader.next()) {
      net::ToCoordinator message;
      if (!message.ParseFromString(*payload)) return drop(peer);
      if (message.has_agent()) {
        if (peer.step) return drop(peer);
        come(peer, message.agent());
      } else if (peer.step) {
        steps_->agent_said(peer.step, peer.node, message);
      }
    }
  }

  void come(Peer& peer, const net::AgentHello& hello) {
    for (Peer& other : peers_) {
      if (other.step && other.node == hello.node() &&
          other.step->facts.key == StepKey{hello.job(), hello.step(), hello.restarts()})
        drop(other);
    }
    std::string why;
    peer.step = steps_->agent_came(
        hello, [this](const net::ToPeer& out) { sent_ += out.ByteSizeLong(); }, why);
    if (!peer.step) {
      if (why.empty()) std::abort();
      return drop(peer);
    }
    peer.node = hello.node();
  }

  void drop(Peer& peer) {
    const std::shared_ptr<Step> step = std::move(peer.step);
    const std::string node = peer.node;
    peer = Peer{};
    if (step) steps_->agent_left(step, node, "dropped");
  }

  void run() {
    io_.restart();
    io_.poll();
  }

  const test::TempDir dir_;
  boost::asio::io_context io_{1};
  Config config_;
  std::optional<Catalog> catalog_;
  std::optional<Steps> steps_;
  std::array<Peer, 4> peers_;
  size_t sent_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static World world;
  world.play({reinterpret_cast<const char*>(data), size});
  return 0;
}
