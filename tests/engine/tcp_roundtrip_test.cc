// SPDX-License-Identifier: GPL-2.0-or-later
// TCP and UDP sockets there and back, in real processes.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/error.h"
#include "engine/broker/broker.h"
#include "engine/files/inet_address.h"
#include "tests/engine/roundtrip.h"
#include "tests/engine/socket_options.h"
#include "tests/engine/tcp_peer.h"

namespace icp::test {
namespace {

class TcpRoundtrip : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
  }
};

// Of a job that is restarted at once where it ran: its former processes may still be going.
TEST_F(TcpRoundtrip, APortThatIsGivenBackAMomentLater) {
  const int probe = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  bind_to(probe, loopback(AF_INET, 0));
  const uint16_t port = port_of(name_of(probe));
  ::close(probe);
  std::thread former;
  EXPECT_EQ(roundtrip(
                [port](Gate& gate) {
                  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
                  bind_to(listener, loopback(AF_INET, port));
                  CHECK_OR_DIE(::listen(listener, 5) == 0);
                  gate.ready_and_go();
                  CHECK_OR_DIE(port_of(name_of(listener)) == port);
                  return 0;
                },
                {.restore =
                     [&](RestoreOptions&) {
                       const int holder = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
                       bind_to(holder, loopback(AF_INET, port));
                       CHECK_OR_DIE(::listen(holder, 5) == 0);
                       former = std::thread([holder] {
                         std::this_thread::sleep_for(std::chrono::milliseconds(700));
                         ::close(holder);
                       });
                     }}),
            0);
  former.join();
}

TEST_F(TcpRoundtrip, ListenersComeBackWithTheirOptions) {
  const auto body = [](Gate& gate) {
    const int four = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    set_option(four, SOL_SOCKET, SO_REUSEADDR, 1);
    set_option(four, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0);
    bind_to(four, loopback(AF_INET, 0));
    CHECK_OR_DIE(::listen(four, 17) == 0);
    const int six = ::socket(AF_INET6, SOCK_STREAM, 0);
    set_option(six, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    bind_to(six, loopback(AF_INET6, 0));
    CHECK_OR_DIE(::listen(six, 5) == 0);
    const int both = ::socket(AF_INET6, SOCK_STREAM, 0);
    sockaddr_storage any{};
    any.ss_family = AF_INET6;
    bind_to(both, any);
    CHECK_OR_DIE(::listen(both, 5) == 0);
    const int bound = ::socket(AF_INET, SOCK_STREAM, 0);
    bind_to(bound, loopback(AF_INET, 0));
    const int unbound = ::socket(AF_INET, SOCK_STREAM, 0);
    set_option(unbound, SOL_SOCKET, SO_RCVBUF, 5000);
    const sockaddr_storage four_name = name_of(four), six_name = name_of(six), both_name = name_of(both),
                           bound_name = name_of(bound);
    gate.ready();
    gate.go();
    CHECK_OR_DIE((::fcntl(four, F_GETFL) & O_NONBLOCK) != 0 && ::fcntl(four, F_GETFD) == FD_CLOEXEC);
    CHECK_OR_DIE(get_option(four, SOL_SOCKET, SO_REUSEADDR) == 1 && get_option(six, SOL_SOCKET, SO_REUSEADDR) == 0);
    CHECK_OR_DIE(get_option(six, IPPROTO_IPV6, IPV6_V6ONLY) == 1 && get_option(both, IPPROTO_IPV6, IPV6_V6ONLY) == 0);
    CHECK_OR_DIE(port_of(name_of(bound)) == port_of(bound_name) && ::listen(bound, 1) == 0);
    CHECK_OR_DIE(get_option(unbound, SOL_SOCKET, SO_RCVBUF) == 10000);
    tcp_info info{};
    socklen_t length = sizeof info;
    CHECK_OR_DIE(::getsockopt(four, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && info.tcpi_sacked == 17);
    CHECK_OR_DIE(::accept(four, nullptr, nullptr) < 0 && errno == EAGAIN);
    for (const auto& [listener, name] :
         {std::pair(four, four_name), {six, six_name}, {both, both_name}, {bound, bound_name}}) {
      sockaddr_storage target = name;
      if (listener == both) target = loopback(AF_INET, port_of(name));
      const int client = connect_to(target);
      const int server = ::accept(listener, nullptr, nullptr);
      CHECK_OR_DIE(server >= 0 && ::write(client, "x", 1) == 1 && read_some(server, 10) == "x");
    }
    return 0;
  };
  EXPECT_EQ(roundtrip(body, {.generations = 3}), 0);
}

TEST_F(TcpRoundtrip, ConnectionsKeepTheDataBothWays) {
  for (const int family : {AF_INET, AF_INET6}) {
    const auto body = [family](Gate& gate) {
      auto [client, server] = tcp_pair(family);
      set_option(client, IPPROTO_TCP, TCP_NODELAY, 1);
      set_option(server, SOL_SOCKET, SO_KEEPALIVE, 1);
      set_option(server, IPPROTO_TCP, TCP_KEEPIDLE, 77);
      set_option(client, SOL_SOCKET, SO_SNDBUF, 30000);
      CHECK_OR_DIE(::fcntl(client, F_SETFL, O_NONBLOCK) == 0);
      const std::string ours = text_of(name_of(client)), theirs = text_of(name_of(server));
      const int reads = get_option(server, SOL_SOCKET, SO_RCVBUF);
      CHECK_OR_DIE(::write(client, "to server", 9) == 9 && ::write(server, "to client", 9) == 9);
      const pid_t child = ::fork();
      if (child == 0) {
        ::close(client);
        char byte;
        CHECK_OR_DIE(read_some(server, 3) == "to ");
        gate.ready();
        CHECK_OR_DIE(read_exactly(server, 6 + 5) == "serverafter");
        CHECK_OR_DIE(::write(server, "reply", 5) == 5 && ::read(server, &byte, 1) == 0);
        ::_exit(0);
      }
      ::close(server);
      gate.go();
      CHECK_OR_DIE(text_of(name_of(client)) == ours && text_of(peer_of(client)) == theirs);
      CHECK_OR_DIE(get_option(client, IPPROTO_TCP, TCP_NODELAY) == 1 && (::fcntl(client, F_GETFL) & O_NONBLOCK) != 0);
      CHECK_OR_DIE(get_option(client, SOL_SOCKET, SO_SNDBUF) == 60000 && reads > 0);
      CHECK_OR_DIE(::fcntl(client, F_SETFL, 0) == 0);
      CHECK_OR_DIE(read_exactly(client, 9) == "to client" && ::write(client, "after", 5) == 5);
      CHECK_OR_DIE(read_exactly(client, 5) == "reply");
      ::close(client);
      int status = -1;
      CHECK_OR_DIE(::waitpid(child, &status, 0) == child && status == 0);
      return 0;
    };
    EXPECT_EQ(roundtrip(body, {.generations = 3, .versions = 2}), 0) << family;
  }
}

// How large segments are (the smallest there are would be slow), and what packets of the restart could change.
TEST_F(TcpRoundtrip, ConnectionsKeepSegmentSizesAndWhatPacketsLeft) {
  if (!broker().privileged()) GTEST_SKIP() << "repair mode is root's";
  for (const int family : {AF_INET, AF_INET6}) {
    const auto body = [family](Gate& gate) {
      const auto [client, server] = tcp_pair(family);
      const auto all = [family](int fd) {
        std::vector<int> values{get_option(fd, IPPROTO_TCP, TCP_MAXSEG)};
        if (family == AF_INET) return values;
        for (const int name :
             {IPV6_V6ONLY, IPV6_MULTICAST_HOPS, IPV6_MULTICAST_IF, IPV6_UNICAST_HOPS, IPV6_RECVHOPLIMIT})
          values.push_back(get_option(fd, IPPROTO_IPV6, name));
        return values;
      };
      for (const int fd : {client, server}) {
        if (family == AF_INET) break;
        set_option(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 20);
        set_option(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
        set_option(fd, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
      }
      const auto at_client = all(client), at_server = all(server);
      gate.ready_and_go();
      CHECK_OR_DIE(all(client) == at_client && all(server) == at_server);
      CHECK_OR_DIE(::write(client, "x", 1) == 1 && read_some(server, 10) == "x");
      return 0;
    };
    EXPECT_EQ(roundtrip(body, {.generations = 3}), 0) << family;
  }
}

TEST_F(TcpRoundtrip, AListenerAndItsConnectionsShareAPort) {
  for (const int reuse : {0, 1}) {
    const auto body = [reuse](Gate& gate) {
      const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
      set_option(listener, SOL_SOCKET, SO_REUSEADDR, reuse);
      bind_to(listener, loopback(AF_INET, 0));
      CHECK_OR_DIE(::listen(listener, 8) == 0);
      const sockaddr_storage name = name_of(listener);
      int clients[3], servers[3];
      for (int i = 0; i < 3; ++i) {
        clients[i] = connect_to(name);
        servers[i] = ::accept(listener, nullptr, nullptr);
        CHECK_OR_DIE(servers[i] >= 0 && ::write(clients[i], "early", 5) == 5);
      }
      gate.ready();
      gate.go();
      const int late = connect_to(name), its_server = ::accept(listener, nullptr, nullptr);
      CHECK_OR_DIE(its_server >= 0 && ::write(late, "late", 4) == 4 && read_exactly(its_server, 4) == "late");
      for (int i = 0; i < 3; ++i) {
        CHECK_OR_DIE(get_option(servers[i], SOL_SOCKET, SO_REUSEADDR) == reuse);
        CHECK_OR_DIE(read_exactly(servers[i], 5) == "early" && ::write(servers[i], "back", 4) == 4);
        CHECK_OR_DIE(read_exactly(clients[i], 4) == "back");
      }
      return 0;
    };
    EXPECT_EQ(roundtrip(body, {.generations = 3}), 0) << reuse;
  }
}

TEST_F(TcpRoundtrip, FullBuffersAreDeliveredInOrder) {
  if (!broker().privileged()) GTEST_SKIP() << "data on its way takes TCP's repair mode, which is root's";
  const auto body = [](Gate& gate) {
    auto [client, server] = tcp_pair(AF_INET);
    CHECK_OR_DIE(::fcntl(client, F_SETFL, O_NONBLOCK) == 0 && ::fcntl(server, F_SETFL, O_NONBLOCK) == 0);
    const uint64_t there = fill(client, 1), back = fill(server, 2);
    CHECK_OR_DIE(there > 200'000 && back > 200'000);
    gate.ready();
    gate.go();
    CHECK_OR_DIE(drain(server, 1, there) && drain(client, 2, back));
    CHECK_OR_DIE(fill(client, 3) > 100'000);
    return 0;
  };
  EXPECT_EQ(roundtrip(body, {.generations = 3}), 0);
}

TEST_F(TcpRoundtrip, HalfClosedConnections) {
  if (!broker().privileged()) GTEST_SKIP() << "data on its way takes TCP's repair mode, which is root's";
  const auto body = [](Gate& gate) {
    auto [one, other] = tcp_pair(AF_INET);
    CHECK_OR_DIE(::write(one, "last", 4) == 4 && ::shutdown(one, SHUT_WR) == 0);
    auto [empty, reader] = tcp_pair(AF_INET);
    CHECK_OR_DIE(::shutdown(empty, SHUT_WR) == 0);
    auto [full, slow] = tcp_pair(AF_INET);
    CHECK_OR_DIE(::fcntl(full, F_SETFL, O_NONBLOCK) == 0);
    const uint64_t amount = fill(full, 7);
    CHECK_OR_DIE(::shutdown(full, SHUT_WR) == 0);
    auto [deaf, talker] = tcp_pair(AF_INET);
    CHECK_OR_DIE(::shutdown(deaf, SHUT_RD) == 0);
    gate.ready();
    gate.go();
    CHECK_OR_DIE(read_exactly(other, 4) == "last" && at_end(other));
    CHECK_OR_DIE(::write(other, "answer", 6) == 6 && read_exactly(one, 6) == "answer");
    CHECK_OR_DIE(::send(one, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    CHECK_OR_DIE(at_end(reader) && ::write(reader, "y", 1) == 1 && read_exactly(empty, 1) == "y");
    CHECK_OR_DIE(drain(slow, 7, amount) && at_end(slow));
    CHECK_OR_DIE(at_end(deaf) && ::write(deaf, "z", 1) == 1 && read_exactly(talker, 1) == "z");
    ::close(other);
    CHECK_OR_DIE(at_end(one));
    return 0;
  };
  EXPECT_EQ(roundtrip(body, {.generations = 3}), 0);
}

// Two that wait to be accepted, for a listener of each family.
TEST_F(TcpRoundtrip, ConnectionsThatNobodyHasAccepted) {
  const auto body = [](Gate& gate) {
    const Listener four(AF_INET), six(AF_INET6);
    std::vector<int> clients;
    for (const Listener* listener : {&four, &six, &four}) clients.push_back(connect_to(name_of(listener->fd())));
    std::vector<std::string> names;
    for (const int client : clients) names.push_back(text_of(name_of(client)));
    gate.ready();
    gate.go();
    std::map<std::string, int> accepted;
    for (const Listener* listener : {&four, &four, &six}) {
      CHECK_OR_DIE(readable_now(listener->fd()));
      const int server = ::accept(listener->fd(), nullptr, nullptr);
      CHECK_OR_DIE(server >= 0);
      accepted[text_of(peer_of(server))] = server;
    }
    for (size_t i = 0; i < clients.size(); ++i) {
      CHECK_OR_DIE(text_of(name_of(clients[i])) == names[i] && accepted.count(names[i]) == 1);
      const int server = accepted[names[i]];
      CHECK_OR_DIE(text_of(peer_of(clients[i])) == text_of(name_of(server)));
      CHECK_OR_DIE(::write(clients[i], "there", 5) == 5 && read_exactly(server, 5) == "there");
      CHECK_OR_DIE(::write(server, "back", 4) == 4 && read_exactly(clients[i], 4) == "back");
    }
    return 0;
  };
  EXPECT_EQ(roundtrip(body, {.generations = 3}), 0);
}

// TCP_CORK holds back what is less than a segment, for 200 ms at most.
TEST_F(TcpRoundtrip, WhatIsCorkedIsSentOnceUncorked) {
  if (!broker().privileged()) GTEST_SKIP() << "data on its way takes TCP's repair mode, which is root's";
  const auto body = [](Gate& gate) {
    auto [client, server] = tcp_pair(AF_INET);
    set_option(client, IPPROTO_TCP, TCP_CORK, 1);
    set_option(server, SOL_SOCKET, SO_RCVLOWAT, 3);
    CHECK_OR_DIE(::write(client, "corked", 6) == 6);
    gate.ready();
    gate.go();
    CHECK_OR_DIE(get_option(client, IPPROTO_TCP, TCP_CORK) == 1 && get_option(server, SOL_SOCKET, SO_RCVLOWAT) == 3);
    set_option(client, IPPROTO_TCP, TCP_CORK, 0);
    pollfd wait{server, POLLIN, 0};
    CHECK_OR_DIE(::poll(&wait, 1, 5000) == 1 && read_exactly(server, 6) == "corked");
    return 0;
  };
  EXPECT_EQ(roundtrip(body, {.generations = 2}), 0);
}

TEST_F(TcpRoundtrip, ConnectionsThatBothEndsHaveShut) {
  if (!broker().privileged()) GTEST_SKIP() << "data on its way takes TCP's repair mode, which is root's";
  const auto body = [](Gate& gate) {
    auto [client, server] = tcp_pair(AF_INET);
    auto [early, late] = tcp_pair(AF_INET6);
    for (const int fd : {client, server, late}) CHECK_OR_DIE(::fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    const uint64_t there = fill(client, 1), back = fill(server, 2);
    CHECK_OR_DIE(::shutdown(client, SHUT_WR) == 0 && ::shutdown(server, SHUT_WR) == 0);
    CHECK_OR_DIE(::shutdown(early, SHUT_WR) == 0 && at_end(late));
    const uint64_t left = fill(late, 3);
    CHECK_OR_DIE(::shutdown(late, SHUT_WR) == 0);
    gate.ready();
    gate.go();
    CHECK_OR_DIE(drain(server, 1, there) && at_end(server) && drain(client, 2, back) && at_end(client));
    CHECK_OR_DIE(at_end(late) && drain(early, 3, left) && at_end(early));
    return 0;
  };
  EXPECT_EQ(roundtrip(body, {.generations = 3}), 0);
}

TEST_F(TcpRoundtrip, ClosedAndResetOtherEnds) {
  const auto body = [](Gate& gate) {
    auto [left, gone] = tcp_pair(AF_INET);
    CHECK_OR_DIE(::write(gone, "bequest", 7) == 7 && ::close(gone) == 0);
    auto [done, done_too] = tcp_pair(AF_INET6);
    CHECK_OR_DIE(::write(done_too, "old", 3) == 3 && ::shutdown(done, SHUT_WR) == 0 && ::close(done_too) == 0);
    auto [broken, breaker] = tcp_pair(AF_INET);
    const linger at_once{1, 0};
    CHECK_OR_DIE(::setsockopt(breaker, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0 && ::close(breaker) == 0);
    gate.ready();
    gate.go();
    CHECK_OR_DIE(read_exactly(left, 7) == "bequest" && at_end(left));
    CHECK_OR_DIE(read_exactly(done, 3) == "old" && at_end(done));
    CHECK_OR_DIE(::send(done, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    char byte;
    CHECK_OR_DIE(::read(broken, &byte, 1) < 0 && errno == ECONNRESET);
    return 0;
  };
  EXPECT_EQ(roundtrip(body, {.generations = 3}), 0);
}

// Two processes that send each other numbered messages, stopped wherever they happen to be.
TEST_F(TcpRoundtrip, TrafficIsNeitherLostNorDoubled) {
  if (!broker().privileged()) GTEST_SKIP() << "data on its way takes TCP's repair mode, which is root's";
  const auto body = [](Gate& gate) {
    auto [mine, theirs] = tcp_pair(AF_INET);
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(mine);
      echo_numbers(theirs);
    }
    ::close(theirs);
    gate.ready();
    const uint64_t sent = exchange_numbers(mine, [] { return readable_now(0); });
    int status = -1;
    CHECK_OR_DIE(::waitpid(child, &status, 0) == child && status == 0 && sent > 0);
    return 0;
  };
  for (int round = 0; round < 4; ++round)
    // They run on between a look at them and the version.
    EXPECT_EQ(
        roundtrip(
            body,
            {.generations = 3, .versions = 3, .pause_ms = 15 + 7u * static_cast<unsigned>(round), .same_view = false}),
        0);
}

TEST_F(TcpRoundtrip, EpollReportsWhatComesAfterwards) {
  const auto body = [](Gate& gate) {
    auto [one, other] = tcp_pair(AF_INET);
    const int set = ::epoll_create1(0);
    epoll_event event{EPOLLIN | EPOLLET, {.u64 = 42}};
    CHECK_OR_DIE(::epoll_ctl(set, EPOLL_CTL_ADD, one, &event) == 0);
    gate.ready();
    gate.go();
    CHECK_OR_DIE(::write(other, "news", 4) == 4);
    CHECK_OR_DIE(::epoll_wait(set, &event, 1, 5000) == 1 && event.data.u64 == 42);
    CHECK_OR_DIE(read_exactly(one, 4) == "news");
    return 0;
  };
  EXPECT_EQ(roundtrip(body, {.generations = 2}), 0);
}

TEST_F(TcpRoundtrip, UdpSocketsKeepNameAndPeer) {
  const auto body = [](Gate& gate) {
    const int receiver = ::socket(AF_INET, SOCK_DGRAM, 0), sender = ::socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    set_option(receiver, SOL_SOCKET, SO_BROADCAST, 1);
    bind_to(receiver, loopback(AF_INET, 0));
    const sockaddr_storage name = name_of(receiver);
    CHECK_OR_DIE(::connect(sender, reinterpret_cast<const sockaddr*>(&name), sizeof(sockaddr_in)) == 0);
    const std::string own = text_of(name_of(sender));
    gate.ready();
    gate.go();
    CHECK_OR_DIE(get_option(receiver, SOL_SOCKET, SO_BROADCAST) == 1 && text_of(name_of(sender)) == own);
    CHECK_OR_DIE(::send(sender, "dgram", 5, 0) == 5 && read_some(receiver, 100) == "dgram");
    return 0;
  };
  EXPECT_EQ(roundtrip(body, {.generations = 2}), 0);
}

// A connection to the test itself, which is not in the job.
class OutsideConnection : public TcpRoundtrip {
 protected:
  Listener listener_{AF_INET};
  Body body() {
    return [target = name_of(listener_.fd())](Gate& gate) {
      const int fd = connect_to(target);
      gate.ready();
      gate.go();
      char byte;
      CHECK_OR_DIE(::read(fd, &byte, 1) < 0 && errno == ECONNRESET);
      CHECK_OR_DIE(::read(fd, &byte, 1) == 0 && ::send(fd, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
      return 0;
    };
  }
};

TEST_F(OutsideConnection, IsRefused) {
  EXPECT_EQ(roundtrip(body(), {.expect_refused = true}), 0);
  EXPECT_FALSE(HasFailure());
}

TEST_F(OutsideConnection, IsResetWhereThatIsWanted) {
  EXPECT_EQ(
      roundtrip(body(), {.generations = 2,
                         .session = [](SessionConfig& config) { config.network.external = ExternalTcp::kReset; }}),
      0);
}

// Another user, who listens at the names by which the holder of a connection could be looked for.
class Squatter {
 public:
  Squatter(const InetAddress& local, const InetAddress& remote) {
    const std::string name = "icp-held " + local.text() + " " + remote.text();
    int ready[2];
    CHECK_OR_DIE(::pipe(ready) == 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      CHECK_OR_DIE(::setresuid(65534, 65534, 65534) == 0);
      for (const std::string& one : {name, name + " 0"}) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path + 1, one.data(), one.size());
        const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
        const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + one.size());
        CHECK_OR_DIE(::bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0 && ::listen(fd, 9) == 0);
      }
      CHECK_OR_DIE(::write(ready[1], "r", 1) == 1);
      for (;;) ::pause();
    }
    ::close(ready[1]);
    char byte = 0;
    CHECK_OR_DIE(::read(ready[0], &byte, 1) == 1);
    ::close(ready[0]);
  }
  ~Squatter() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Squatter(const Squatter&) = delete;
  Squatter& operator=(const Squatter&) = delete;

 private:
  pid_t pid_;
};

// The other end hears nothing of the restart: neither what it sends meanwhile is lost, nor what it has been sent. No
// other user can stand in the way.
TEST_F(OutsideConnection, GoesOnWhereThatIsWanted) {
  if (!broker().privileged()) GTEST_SKIP() << "repair mode is root's";
  const auto target = name_of(listener_.fd());
  std::thread meanwhile;
  const UniqueFd* other = nullptr;
  UniqueFd accepted;
  std::optional<Squatter> squatter;
  const auto keep = [](SessionConfig& config) { config.network.external = ExternalTcp::kKeep; };
  const auto body = [target](Gate& gate) {
    const int fd = connect_to(target);
    CHECK_OR_DIE(::write(fd, "before", 6) == 6);
    gate.ready();
    gate.go();
    CHECK_OR_DIE(read_exactly(fd, 9) == "meanwhile" && ::write(fd, "after", 5) == 5);
    CHECK_OR_DIE(at_end(fd) && ::write(fd, "last", 4) == 4);
    return 0;
  };
  std::thread server([&] {
    accepted.reset(::accept(listener_.fd(), nullptr, nullptr));
    squatter.emplace(InetAddress::peer_of(accepted.get()).value(), InetAddress::local_of(accepted.get()));
    EXPECT_EQ(read_exactly(accepted.get(), 6), "before");
    other = &accepted;
  });
  EXPECT_EQ(roundtrip(body, {.pause_ms = 200,
                             .session = keep,
                             .restore =
                                 [&](RestoreOptions&) {
                                   server.join();
                                   ASSERT_NE(other, nullptr);
                                   EXPECT_EQ(::write(other->get(), "meanwhile", 9), 9);
                                   meanwhile = std::thread([&] {
                                     EXPECT_EQ(read_exactly(other->get(), 5), "after");
                                     ::shutdown(other->get(), SHUT_WR);
                                     EXPECT_EQ(read_exactly(other->get(), 4), "last");
                                     EXPECT_TRUE(at_end(other->get()));
                                   });
                                 }}),
            0);
  if (server.joinable()) server.join();
  if (meanwhile.joinable()) meanwhile.join();
}

uint64_t number_in(const std::string& path) {
  uint64_t number = 0;
  for (int tries = 0; number == 0 && tries < 1000; ++tries) {
    std::ifstream(path) >> number;
    if (number == 0) ::usleep(10'000);
  }
  return number;
}

// With more on its way than fits in, from the job and, if `outside_sends`, from the other end.
void expect_outside_shut_by_both(const Listener& listener, bool outside_first, bool outside_sends) {
  const TempDir directory;
  ASSERT_EQ(::chmod(directory.path().c_str(), 0777), 0);
  const std::string there = directory.path() + "/there", back = directory.path() + "/back";
  const auto shut = [](int fd, uint64_t seed, const std::string& path, bool sends) {
    const uint64_t bytes = sends ? fill(fd, seed) : 0;
    ::shutdown(fd, SHUT_WR);
    std::ofstream(path) << bytes + 1 << std::flush;
  };
  UniqueFd accepted;
  std::thread server([&] {
    accepted.reset(::accept(listener.fd(), nullptr, nullptr));
    ::fcntl(accepted.get(), F_SETFL, O_NONBLOCK);
    if (!outside_first) number_in(there);
    shut(accepted.get(), 2, back, outside_sends);
  });
  const auto body = [&, target = name_of(listener.fd())](Gate& gate) {
    const int fd = connect_to(target);
    CHECK_OR_DIE(::fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    if (outside_first) number_in(back);
    shut(fd, 1, there, true);
    CHECK_OR_DIE(number_in(back) > 0);
    gate.ready_and_go();
    CHECK_OR_DIE(drain(fd, 2, number_in(back) - 1));
    pollfd end{fd, POLLIN, 0};
    CHECK_OR_DIE(::poll(&end, 1, 15'000) == 1 && at_end(fd));
    return 0;
  };
  std::thread reader;
  RoundtripOptions options{.pause_ms = 200, .same_view = false};
  options.session = [](SessionConfig& config) { config.network.external = ExternalTcp::kKeep; };
  options.restore = [&](RestoreOptions&) {
    server.join();
    reader = std::thread([&] {
      EXPECT_TRUE(drain(accepted.get(), 1, number_in(there) - 1));
      pollfd end{accepted.get(), POLLIN, 0};
      EXPECT_TRUE(::poll(&end, 1, 15'000) == 1 && at_end(accepted.get()));
    });
  };
  EXPECT_EQ(roundtrip(body, options), 0);
  if (server.joinable()) server.join();
  if (reader.joinable()) reader.join();
}

TEST_F(OutsideConnection, GoesOnWhenTheJobAndThenTheOtherHaveShutIt) {
  if (!broker().privileged()) GTEST_SKIP() << "repair mode is root's";
  expect_outside_shut_by_both(listener_, false, true);
  expect_outside_shut_by_both(listener_, false, false);
}

TEST_F(OutsideConnection, GoesOnWhenTheOtherAndThenTheJobHaveShutIt) {
  if (!broker().privileged()) GTEST_SKIP() << "repair mode is root's";
  expect_outside_shut_by_both(listener_, true, true);
  expect_outside_shut_by_both(listener_, true, false);
}

TEST_F(TcpRoundtrip, AddressesAreExchanged) {
  const auto body = [](Gate& gate) {
    auto [one, other] = tcp_pair(AF_INET);
    gate.ready();
    gate.go();
    CHECK_OR_DIE(text_of(name_of(one)).starts_with("127.0.0.9:") && text_of(peer_of(one)).starts_with("127.0.0.9:"));
    CHECK_OR_DIE(::write(one, "new", 3) == 3 && read_exactly(other, 3) == "new");
    return 0;
  };
  EXPECT_EQ(roundtrip(body, {.restore =
                                 [](RestoreOptions& options) {
                                   options.network.addresses = {{"127.0.0.1", "127.0.0.9"}};
                                 }}),
            0);
}

}  // namespace
}  // namespace icp::test
