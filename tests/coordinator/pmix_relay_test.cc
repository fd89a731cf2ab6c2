// SPDX-License-Identifier: GPL-2.0-or-later
// The relay between clients and a server that a test plays.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "coordinator/pmix/relay.h"
#include "coordinator/protocol/packet.h"

namespace icp::pmix {
namespace {

using namespace std::string_literals;

constexpr int kPatience = 10'000;  // ms
const std::string kFenceBody = "\x02\x03\x02\x01\x02\x1eslurm.pmix.2.0\0\xfe\xff\xff\xff\x0f\x02\0"s;
const std::string kGetBody = "\x02\x04 get"s, kCommitBody = "\x02\x02 published"s, kDone = "\x02\0"s;

UniqueFd listen_on(sockaddr_in& address) {
  address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(::listen(fd.get(), 16), 0);
  EXPECT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  return fd;
}

bool readable(int fd, int timeout_ms = kPatience) {
  pollfd one{fd, POLLIN, 0};
  return ::poll(&one, 1, timeout_ms) == 1;
}

// One end of a connection.
struct End {
  UniqueFd fd;
  std::string have;

  void say(const std::string& bytes) const {
    EXPECT_EQ(::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  void say(uint32_t tag, const std::string& body) const { say(Message{0, tag, body}.encode()); }
  bool more() {
    char part[4096];
    if (!readable(fd.get())) return false;
    const ssize_t got = ::recv(fd.get(), part, sizeof part, 0);
    if (got > 0) have.append(part, static_cast<size_t>(got));
    return got > 0;
  }
  std::string bytes(size_t count) {
    while (have.size() < count && more()) {
    }
    std::string taken = have.substr(0, count);
    have.erase(0, count);
    return taken;
  }
  // "TAG BODY"; empty when nothing comes.
  std::string message() {
    for (;;) {
      if (const auto message = take_message(have)) return fmt::format("{} {}", message->tag, message->body);
      if (!more()) return {};
    }
  }
  bool silent() const { return have.empty() && !readable(fd.get(), 100); }
};

std::string text(uint32_t tag, const std::string& body) { return fmt::format("{} {}", tag, body); }

class PmixRelay : public ::testing::Test {
 protected:
  PmixRelay() {
    UniqueFd listener = listen_on(relay_address_);
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    control_.reset(ends[0]);
    thread_ = std::thread([listener = std::move(listener), control = UniqueFd(ends[1])]() mutable {
      Relay(std::move(listener), std::move(control)).run();
    });
    new_server("slurm.pmix.2.0");
  }
  ~PmixRelay() override {
    control_.reset();
    clients_.clear();
    server_.reset();
    thread_.join();
  }

  // From now on another server is the step's: as after a restart.
  void new_server(const std::string& name_space) {
    sockaddr_in address{};
    server_ = listen_on(address);
    name_space_ = name_space;
    protocol::Packet packet(protocol::kPmixServer);
    packet.set("uri", fmt::format("s;tcp4://127.0.0.1:{}", ntohs(address.sin_port))).set("name_space", name_space);
    for (const auto& [kind, ended] : fences_there_) packet.set_number(kind, ended);
    protocol::send_packet(control_.get(), packet);
  }

  std::string hello(int rank) const {
    const std::string body =
        "native\0"s + "\0\0\0\0\0"s + name_space_ + "\0\0\0\0"s + static_cast<char>(rank) + "4.2.2\0v41\0\x01hash\0"s;
    return "\xff\xff\xff\xff\xff\xff\xff\xff"s + static_cast<char>(body.size()) + "\0\0\0\0\0\0\0"s + body;
  }

  // The next client that comes to the server, which knows it by `index`.
  End accept(int rank, int index) const {
    EXPECT_TRUE(readable(server_.get()));
    End end{UniqueFd(::accept4(server_.get(), nullptr, nullptr, SOCK_CLOEXEC)), {}};
    const std::string wanted = hello(rank);
    EXPECT_EQ(end.bytes(wanted.size()), wanted);
    end.say("\0\0\0\0\0\0\0"s + static_cast<char>(index));
    return end;
  }

  End& client(int rank) {
    End end{UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), {}};
    EXPECT_EQ(::connect(end.fd.get(), reinterpret_cast<sockaddr*>(&relay_address_), sizeof relay_address_), 0);
    end.say(hello(rank));
    clients_.push_back(std::move(end));
    return clients_.back();
  }

  // A client that has been introduced to the server; returns both ends.
  std::pair<End&, End> meet(int rank, int index) {
    End& one = client(rank);
    End server = accept(rank, index);
    EXPECT_EQ(one.bytes(8), "\0\0\0\0\0\0\0"s + static_cast<char>(index));
    return {one, std::move(server)};
  }

  sockaddr_in relay_address_{};
  UniqueFd control_, server_;
  std::string name_space_;
  std::list<End> clients_;
  std::map<std::string, int> fences_there_;  // on other nodes, for the next server
  std::thread thread_;
};

TEST_F(PmixRelay, PassesOnBothWays) {
  auto [one, server] = meet(0, 5);
  one.say(101, kGetBody);
  EXPECT_EQ(server.message(), text(101, kGetBody));
  server.say(101, "found");
  EXPECT_EQ(one.message(), text(101, "found"));
  server.say(0, "an event");
  EXPECT_EQ(one.message(), text(0, "an event"));
}

TEST_F(PmixRelay, SaysAgainWhatAServerKeepsAndAsksAgain) {
  auto [one, server] = meet(0, 5);
  for (const uint32_t tag : {101u, 102u, 103u}) {
    one.say(tag, tag == 102 ? kGetBody : kCommitBody);
    server.message();
    server.say(tag, kDone);
    EXPECT_EQ(one.message(), text(tag, kDone));
  }
  one.say(104, kGetBody);
  EXPECT_EQ(server.message(), text(104, kGetBody));
  server.fd.reset();
  new_server("slurm.pmix.31.0");

  End later = accept(0, 9);
  EXPECT_EQ(later.message(), text(101, kCommitBody));
  EXPECT_EQ(later.message(), text(103, kCommitBody));
  EXPECT_EQ(later.message(), text(104, kGetBody));
  for (const uint32_t tag : {101u, 103u, 104u}) later.say(tag, kDone);
  EXPECT_EQ(one.message(), text(104, kDone)) << "the client has heard the others before";
  EXPECT_TRUE(one.silent());
  one.say(105, kGetBody);
  EXPECT_EQ(later.message(), text(105, kGetBody));
}

TEST_F(PmixRelay, WhatIsAskedWithoutAServerWaits) {
  auto [one, server] = meet(0, 5);
  server.fd.reset();
  one.say(101, kGetBody);
  EXPECT_TRUE(one.silent());
  new_server("slurm.pmix.2.0");
  End later = accept(0, 1);
  EXPECT_EQ(later.message(), text(101, kGetBody));
}

TEST_F(PmixRelay, AFenceThatOthersHaveSeenEndEnds) {
  End& one = client(0);
  End to_one = accept(0, 1);
  End& two = client(1);
  End to_two = accept(1, 2);
  one.bytes(8), two.bytes(8);
  one.say(101, kFenceBody);
  two.say(201, kFenceBody);
  EXPECT_EQ(to_one.message(), text(101, kFenceBody));
  EXPECT_EQ(to_two.message(), text(201, kFenceBody));
  to_one.say(101, kDone);  // and the other answer is lost
  EXPECT_EQ(one.message(), text(101, kDone));
  to_one.fd.reset(), to_two.fd.reset();
  new_server("slurm.pmix.2.0");
  End again_one = accept(0, 1), again_two = accept(1, 2);
  EXPECT_EQ(two.message(), text(201, kDone));
  // The next one is a fence of both.
  two.say(202, kFenceBody);
  EXPECT_EQ(again_two.message(), text(202, kFenceBody));
  EXPECT_TRUE(two.silent());
  EXPECT_TRUE(again_one.silent());
}

TEST_F(PmixRelay, AFenceThatOtherNodesHaveSeenEndEnds) {
  auto [one, server] = meet(0, 1);
  for (const uint32_t tag : {101u, 102u}) {
    one.say(tag, kFenceBody);
    server.message();
    if (tag == 101) server.say(tag, kDone);
  }
  EXPECT_EQ(one.message(), text(101, kDone));
  server.fd.reset();
  protocol::send_packet(control_.get(), protocol::Packet(protocol::kPmixAsk));
  protocol::Packet told;
  ASSERT_EQ(protocol::receive_packet(control_.get(), told, kPatience), protocol::Received::kPacket);
  ASSERT_EQ(told.type, protocol::kPmixFences);
  ASSERT_EQ(told.fields.size(), 1u);
  EXPECT_EQ(told.fields.begin()->second, "1");
  fences_there_ = {{told.fields.begin()->first, 2}};
  new_server("slurm.pmix.2.0");
  End later = accept(0, 1);
  EXPECT_EQ(one.message(), text(102, kDone));
  one.say(103, kFenceBody);
  EXPECT_EQ(later.message(), text(103, kFenceBody));
}

TEST_F(PmixRelay, TheServerSeesAClientGo) {
  auto [one, server] = meet(0, 5);
  one.fd.reset();
  EXPECT_EQ(server.message(), "");
}

TEST_F(PmixRelay, WhatAFinalizedClientHasPublishedStays) {
  auto [one, server] = meet(0, 5);
  one.say(101, kCommitBody);
  one.say(102, "\x02\x05"s);
  server.message(), server.message();
  server.say(101, kDone), server.say(102, kDone);
  one.message(), one.message();
  one.fd.reset();
  EXPECT_EQ(server.message(), "");
  new_server("slurm.pmix.2.0");
  End later = accept(0, 1);
  EXPECT_EQ(later.message(), text(101, kCommitBody));
  EXPECT_EQ(later.message(), text(102, "\x02\x05"s));
}

TEST_F(PmixRelay, NoClientOfPmixIsSentAway) {
  End end{UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), {}};
  ASSERT_EQ(::connect(end.fd.get(), reinterpret_cast<sockaddr*>(&relay_address_), sizeof relay_address_), 0);
  end.say("GET / HTTP/1.0\r\n\r\nand what else there is");
  EXPECT_EQ(end.message(), "");
}

TEST(PmixServer, Uris) {
  const Server server = parse_server("pmix-server.2975;tcp4://127.0.0.1:47683", "slurm.pmix.1.0");
  EXPECT_EQ(server.host, "127.0.0.1");
  EXPECT_EQ(server.port, 47683);
  for (const char* const wrong : {"", "tcp4://127.0.0.1", "x;tcp4://:1", "x;tcp4://host:1", "x;tcp4://127.0.0.1:0"})
    EXPECT_THROW(parse_server(wrong, "slurm.pmix.1.0"), std::runtime_error) << wrong;
}

TEST_F(PmixRelay, ConnectionsOfOtherUsersAreClosed) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs another user";
  const pid_t other = ::fork();
  if (other == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(9);
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (::connect(fd, reinterpret_cast<sockaddr*>(&relay_address_), sizeof relay_address_) != 0) ::_exit(8);
    char byte;
    ::_exit(readable(fd) && ::recv(fd, &byte, 1, 0) <= 0 ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(other, &status, 0), other);
  EXPECT_EQ(status, 0);
  EXPECT_FALSE(readable(server_.get(), 0));
  meet(0, 1);  // the job's own are served as before
}

}  // namespace
}  // namespace icp::pmix
