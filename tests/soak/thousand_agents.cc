// SPDX-License-Identifier: GPL-2.0-or-later
// Simulated agents against a real icpctld: they answer each phase at once, so that what is measured is icpctld and the
// messages.
//
//   thousand_agents PORT MUNGE_SOCKET ICPCTLD_UID ICPCTLD_PID AGENTS ROUNDS one-step|one-node-steps
//
// one-step: one step of AGENTS nodes. one-node-steps: AGENTS steps of one node each. Their interval is a second. A
// round is from the first BeginRound to the moment the last of all agents has committed; in the second case that is a
// wave of AGENTS rounds, max_writers at a time. icpctld_cpu_ms and agents_cpu_ms are processor time of such a round or
// wave. Prints one line of key=value; exit code 1 with a reason when anything
// goes wrong. Runs as root, as agents do.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "coordinator/protocol/connection.h"
#include "coordinator/protocol/coordinator.pb.h"
#include "engine/base/error.h"

namespace {

namespace asio = boost::asio;
using namespace icp;
using Clock = std::chrono::steady_clock;

constexpr uint32_t kJob = 900'000;    // the first one: none that Slurm knows
constexpr uint64_t kInterval = 1000;  // ms
constexpr auto kConnectTimeout = std::chrono::seconds(60);
constexpr auto kPatience = std::chrono::seconds(180);

double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

// VmRSS of a process, KiB.
long resident(const std::string& pid) {
  std::ifstream status("/proc/" + pid + "/status");
  for (std::string word; status >> word;) {
    if (word != "VmRSS:") continue;
    long kib = 0;
    status >> kib;
    return kib;
  }
  throw_error(ErrorKind::kUsage, "there is no process {}", pid);
}

// Processor time of icpctld and of this process, ms: what a round costs, however loaded the machine is.
double cpu_ms(const std::string& pid) {
  std::ifstream stat("/proc/" + pid + "/stat");
  const std::string text{std::istreambuf_iterator<char>(stat), {}};
  std::istringstream fields(text.substr(text.rfind(')') + 2));
  std::string word;
  for (int i = 3; i < 14 && fields; i++) fields >> word;
  double user = 0, system = 0;
  fields >> user >> system;
  return (user + system) * 1000 / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

class Load {
 public:
  Load(std::vector<std::string> words)
      : port_(static_cast<uint16_t>(std::stoi(words.at(1)))),
        munge_(words.at(2)),
        server_(static_cast<uid_t>(std::stoul(words.at(3)))),
        pid_(words.at(4)),
        agents_(std::stoul(words.at(5))),
        rounds_(std::stoul(words.at(6))),
        one_step_(words.at(7) == "one-step") {}

  void run() {
    const long before = resident(pid_);
    const auto begin = Clock::now();
    for (size_t i = 0; i < agents_; i++) connect(i);
    until([this] { return welcome_ == agents_; }, "all agents to be welcome");
    const double connecting = ms_since(begin);
    const long connected = resident(pid_);
    const double server_before = cpu_ms(pid_), own_before = cpu_ms("self");
    until([this] { return commits_ >= agents_ * rounds_; }, "rounds of all agents");
    const double all = ms_since(begin) - connecting;
    const long after = resident(pid_);
    const double waves = static_cast<double>(commits_) / static_cast<double>(agents_);
    const double server_cpu = (cpu_ms(pid_) - server_before) / waves, own_cpu = (cpu_ms("self") - own_before) / waves;
    std::sort(times_.begin(), times_.end());
    std::printf(
        "agents=%zu kind=%s connect_ms=%.0f rounds=%zu round_ms_median=%.1f round_ms_max=%.1f commits_per_s=%.0f "
        "icpctld_cpu_ms=%.1f agents_cpu_ms=%.1f "
        "rss_before_kib=%ld rss_connected_kib=%ld rss_after_kib=%ld kib_per_agent=%.1f\n",
        agents_, one_step_ ? "one-step" : "one-node-steps", connecting, times_.size(), median(times_),
        times_.empty() ? 0 : times_.back(), 1000.0 * static_cast<double>(commits_) / all, server_cpu, own_cpu, before,
        connected, after, static_cast<double>(after - before) / static_cast<double>(agents_));
    for (const auto& connection : connections_) connection->close();
    pool_.join();
  }

 private:
  void connect(size_t i) {
    asio::ip::tcp::socket socket(io_);
    socket.connect({asio::ip::address_v4::loopback(), port_});
    net::Connection::Handlers handlers;
    handlers.ready = [this, i] { hello(i); };
    handlers.received = [this, i](const std::string& payload) { received(i, payload); };
    handlers.closed = [this, i](const std::string& why) { failure_ = fmt::format("agent {}: {}", i, why); };
    connections_.push_back(
        net::Connection::open(std::move(socket), munge_, pool_, server_, kConnectTimeout, std::move(handlers)));
    io_.poll();
  }

  void hello(size_t i) {
    net::ToCoordinator message;
    net::AgentHello& agent = *message.mutable_agent();
    agent.set_job(one_step_ ? kJob : kJob + static_cast<uint32_t>(i));
    agent.set_node(fmt::format("node{:05}", i));
    agent.set_nodes(one_step_ ? static_cast<uint32_t>(agents_) : 1);
    agent.set_tasks(1);
    agent.set_image("/scratch/simulated");
    agent.set_interval_ms(kInterval);
    connections_[i]->send(message.SerializeAsString());
  }

  void say(size_t i, uint64_t round, net::Phase phase) {
    net::ToCoordinator message;
    net::PhaseDone& done = *message.mutable_done();
    done.set_round(round);
    done.set_phase(phase);
    if (phase == net::COMMIT) {
      net::VersionNumbers& numbers = *done.mutable_numbers();
      numbers.set_bytes(4096);
      numbers.set_pages(1);
      numbers.set_processes(1);
      numbers.set_tracker("simulated");
      commits_++;
      if (commits_ % agents_ == 0) {
        times_.push_back(ms_since(wave_));
        wave_known_ = false;
      }
    }
    connections_[i]->send(message.SerializeAsString());
  }

  void received(size_t i, const std::string& payload) {
    net::ToPeer message;
    if (!message.ParseFromString(payload)) failure_ = "a message that is none";
    if (message.has_welcome()) welcome_++;
    if (message.has_begin()) {
      if (!wave_known_) wave_ = Clock::now();
      wave_known_ = true;
      say(i, message.begin().round(), message.begin().alone() ? net::COMMIT : net::PREPARE);
    }
    if (message.has_go()) say(i, message.go().round(), message.go().phase());
    if (message.has_abort()) failure_ = "a round was given up: " + message.abort().reason();
  }

  template <typename There>
  void until(There there, const char* what) {
    const auto latest = Clock::now() + kPatience;
    while (!there()) {
      io_.restart();
      io_.run_for(std::chrono::milliseconds(20));
      if (!failure_.empty()) throw_error(ErrorKind::kSystem, "{}", failure_);
      if (Clock::now() > latest) throw_error(ErrorKind::kBusy, "waited in vain for {}", what);
    }
  }

  asio::io_context io_{1};
  asio::thread_pool pool_{2};
  const uint16_t port_;
  const net::MungeAuth munge_;
  const uid_t server_;
  const std::string pid_;
  const size_t agents_, rounds_;
  const bool one_step_;
  std::vector<net::Connection::Pointer> connections_;
  size_t welcome_ = 0, commits_ = 0;
  Clock::time_point wave_;
  bool wave_known_ = false;
  std::vector<double> times_;
  std::string failure_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 8) {
    std::fputs("usage: thousand_agents PORT MUNGE_SOCKET UID PID AGENTS ROUNDS one-step|one-node-steps\n", stderr);
    return 2;
  }
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  try {
    Load({argv, argv + argc}).run();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "thousand_agents: %s\n", error.what());
    return 1;
  }
}
