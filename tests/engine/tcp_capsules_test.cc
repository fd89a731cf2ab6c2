// SPDX-License-Identifier: GPL-2.0-or-later
// TCP connections between two capsules of one job, each with an agent of its own; and agents that are killed.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <vector>

#include "engine/base/error.h"
#include "engine/session.h"
#include "tests/engine/roundtrip.h"
#include "tests/engine/tcp_peer.h"

namespace icp::test {
namespace {

constexpr uid_t kNobody = 65534;
constexpr size_t kMostEnds = 16;

// Stands for a coordinator: two agents exchange their connection ends, and neither goes on before the other.
class Exchange {
 public:
  Exchange() {
    pthread_barrierattr_t attributes;
    ::pthread_barrierattr_init(&attributes);
    ::pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    ::pthread_barrier_init(&barrier_, &attributes, 2);
  }
  static Exchange& make() {
    void* place = ::mmap(nullptr, sizeof(Exchange), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return *new (place) Exchange;
  }

  // The other agent's ends.
  std::vector<ConnectionEnd> meet(int agent, const std::vector<ConnectionEnd>& mine) {
    CHECK_OR_DIE(mine.size() <= kMostEnds);
    count_[agent] = mine.size();
    for (size_t i = 0; i < mine.size(); ++i) ends_[agent][i] = plain(mine[i]);
    ::pthread_barrier_wait(&barrier_);
    std::vector<ConnectionEnd> others;
    for (size_t i = 0; i < count_[1 - agent]; ++i) others.push_back(whole(ends_[1 - agent][i]));
    ::pthread_barrier_wait(&barrier_);
    return others;
  }

  // Those of mine whose other ends the other agent has.
  std::vector<ConnectionEnd> inside(int agent, const std::vector<ConnectionEnd>& mine) {
    std::vector<ConnectionEnd> result;
    for (const ConnectionEnd& other : meet(agent, mine))
      for (const ConnectionEnd& own : mine)
        if (own.local == other.remote && own.remote == other.local) result.push_back(own);
    return result;
  }

 private:
  struct PlainAddress {
    size_t bytes;
    char ip[16];
    uint16_t port;
  };
  struct PlainEnd {
    PlainAddress local, remote;
    uint32_t received;
  };
  static PlainAddress plain(const InetAddress& address) {
    PlainAddress result{address.ip.size(), {}, address.port};
    address.ip.copy(result.ip, sizeof result.ip);
    return result;
  }
  static InetAddress whole(const PlainAddress& address) { return {{address.ip, address.bytes}, address.port}; }
  static PlainEnd plain(const ConnectionEnd& end) { return {plain(end.local), plain(end.remote), end.received}; }
  static ConnectionEnd whole(const PlainEnd& end) { return {whole(end.local), whole(end.remote), end.received}; }

  pthread_barrier_t barrier_;
  size_t count_[2] = {};
  PlainEnd ends_[2][kMostEnds] = {};
};

// A process of the job, as user nobody; stdin tells it to come to an end.
struct Job {
  int go[2];
  pid_t pid = 0;

  // The body finds `keep`, if given, as descriptor 3.
  explicit Job(const std::function<void()>& body, int keep = -1) {
    int started[2];
    CHECK_OR_DIE(::pipe2(go, O_CLOEXEC) == 0 && ::pipe(started) == 0);
    pid = ::fork();
    if (pid != 0) {
      char byte;
      ::close(started[1]);
      CHECK_OR_DIE(::read(started[0], &byte, 1) == 0);  // the process has closed what it inherited
      ::close(started[0]);
      return;
    }
    ::dup2(go[0], 0);
    ::dup2(2, 1);
    if (keep >= 0) ::dup2(keep, 3);
    ::close_range(keep >= 0 ? 4 : 3, ~0u, 0);
    ::setsid();
    if (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0) ::_exit(98);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    body();
    ::_exit(97);
  }
  ~Job() {
    ::close(go[0]);
    ::close(go[1]);
  }
};

int exit_of(pid_t pid) {
  int status = -1;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return status;
}

pid_t agent(const std::function<void()>& work) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    work();
    ::_exit(0);
  } catch (const Error& error) {
    dprintf(2, "agent: %s; %s\n", error.what(), error.hint().c_str());
    ::_exit(1);
  }
}

class TwoCapsules : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ASSERT_EQ(::chown(directory_.path().c_str(), kNobody, kNobody), 0);
  }

  SessionConfig config(int number, pid_t pid) {
    SessionConfig result;
    result.image_path = directory_.path() + "/image";
    result.identity = {kNobody, kNobody, {}};
    result.node = "node" + std::to_string(number);
    result.outer = outer_streams_of(pid, 0, true);
    result.network.inside_job = [this, number](const std::vector<ConnectionEnd>& ends, bool stopped) {
      return stopped ? exchange_.inside(number, ends) : ends;
    };
    return result;
  }

  RestoreOptions options(int number, const Job& job) {
    RestoreOptions result;
    result.image_path = directory_.path() + "/image";
    result.identity = {kNobody, kNobody, {}};
    result.node = "node" + std::to_string(number);
    result.init_path = ICP_INIT_PATH;
    result.streams[0] = {job.go[0], 2, 2};
    result.network.addresses = {{"127.0.0.1", "127.0.0.2"}};
    result.network.meet = [this, number](const std::vector<ConnectionEnd>& ends) {
      return exchange_.meet(number, ends);
    };
    return result;
  }

  void take_and_kill(Job& one, Job& two, int versions) {
    const Job* jobs[] = {&one, &two};
    pid_t agents[2];
    for (int i = 0; i < 2; ++i) {
      agents[i] = agent([&] {
        Session session(config(i, jobs[i]->pid), {{jobs[i]->pid, 0}});
        for (int version = 1; version <= versions; ++version) {
          ::usleep(15'000);
          session.checkpoint(version == versions);
        }
      });
    }
    for (const pid_t pid : agents) EXPECT_EQ(exit_of(pid), 0);
    for (const Job* job : jobs) ::waitpid(job->pid, nullptr, 0);
  }

  // Restores both, lets them run for a while, and then come to an end by themselves.
  void restore_and_end(Job& one, Job& two) {
    const Job* jobs[] = {&one, &two};
    pid_t agents[2];
    for (int i = 0; i < 2; ++i) {
      agents[i] = agent([&] {
        if (i == 1) ::usleep(200'000);  // the other one must wait, and must not be answered by a reset
        RestoredCapsule capsule = RestoredCapsule::restore(options(i, *jobs[i]));
        pollfd wait{capsule.event_fd(), POLLIN, 0};
        CHECK_OR_DIE(::poll(&wait, 1, 20'000) == 1);
        const std::vector<TaskExit> exits = capsule.take_exits();
        CHECK_OR_DIE(exits.size() == 1 && exits[0].status == 0);
      });
    }
    ::usleep(400'000);
    EXPECT_EQ(::write(one.go[1], "g", 1), 1);
    for (const pid_t pid : agents) EXPECT_EQ(exit_of(pid), 0);
  }

  Exchange& exchange_ = Exchange::make();
  TempDir directory_;
};

TEST_F(TwoCapsules, NoMessageIsLostOrDoubled) {
  for (int round = 0; round < 3; ++round) {
    std::filesystem::remove_all(directory_.path() + "/image");
    const Listener listener(AF_INET);
    const sockaddr_storage address = name_of(listener.fd());
    Job client([&] {
      exchange_numbers(connect_to(address), [] { return readable_now(0); });
      ::_exit(0);
    });
    const int accepted = ::accept(listener.fd(), nullptr, nullptr);
    ASSERT_GE(accepted, 0);
    Job server([] { echo_numbers(3); }, accepted);
    ::close(accepted);
    take_and_kill(client, server, 2);
    restore_and_end(client, server);
  }
}

// A connection in repair mode is of no use to its process: the mode must not outlive the agent.
TEST_F(TwoCapsules, AKilledAgentLeavesConnectionsUsable) {
  constexpr int kPairs = 6, kRounds = 60;
  Job job([] {
    for (int i = 0; i < kPairs; ++i) {
      const auto [one, other] = tcp_pair(AF_INET);
      if (::fork() == 0) {
        ::close(one);
        echo_numbers(other);
      }
      if (::fork() == 0) {
        ::close(other);
        exchange_numbers(one, [] { return readable_now(0); });
        ::_exit(0);
      }
      ::close(one);
      ::close(other);
    }
    for (int i = 0; i < 2 * kPairs; ++i) {
      int status = -1;
      CHECK_OR_DIE(::wait(&status) > 0 && status == 0);
    }
    ::_exit(0);
  });
  ::usleep(100'000);
  SessionConfig alone = config(0, job.pid);
  alone.network = {};
  std::minstd_rand random(20261122);
  for (int round = 0; round < kRounds; ++round) {
    const pid_t pid = agent([&] {
      Session session(alone, {{job.pid, 0}});
      for (;;) session.checkpoint();
    });
    ::usleep(std::uniform_int_distribution<useconds_t>(20'000, 120'000)(random));
    ::kill(pid, SIGKILL);
    ASSERT_TRUE(WIFSIGNALED(exit_of(pid))) << "the agent gave up by itself in round " << round;
  }
  ASSERT_EQ(::write(job.go[1], "g", 1), 1);
  EXPECT_EQ(exit_of(job.pid), 0);
}

}  // namespace
}  // namespace icp::test
