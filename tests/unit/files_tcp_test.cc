// SPDX-License-Identifier: GPL-2.0-or-later
// TCP connections: what is read of them, without being in their way; what passes is told from what stays.
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <random>

#include "engine/files/inet_address.h"
#include "engine/files/inet_diag.h"
#include "engine/files/tcp_repair.h"
#include "files_test_util.h"

namespace icp::test {
namespace {

using ::testing::HasSubstr;

sockaddr_in loopback(uint16_t port = 0) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = ::htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

sockaddr_in name_of(int fd) {
  sockaddr_in address{};
  socklen_t length = sizeof address;
  must(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  return address;
}

int listening(int backlog) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_in address = loopback();
  must(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 && ::listen(fd, backlog) == 0);
  return fd;
}

int connecting(int listener) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const sockaddr_in address = name_of(listener);
  must(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 || errno == EINPROGRESS);
  return fd;
}

struct Pair {
  UniqueFd listener{listening(4)}, client{connecting(listener.get())},
      server{::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)};
};

int option(int fd, int level, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  EXPECT_EQ(::getsockopt(fd, level, name, &value, &length), 0);
  return value;
}

class TcpReading : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  }
};

TEST_F(TcpReading, QueuesAndNumbersFitEachOther) {
  const Pair pair;
  const int on = 1, client = pair.client.get(), server = pair.server.get();
  ASSERT_EQ(::setsockopt(client, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), 0);
  std::string written, chunk(5000, 'x');
  for (ssize_t put = 0; (put = ::write(client, chunk.data(), chunk.size())) > 0; chunk[0]++)
    written.append(chunk, 0, static_cast<size_t>(put));
  TcpReader reader;
  for (int round = 0; round < 20; ++round) {  // the kernel goes on delivering
    const TcpReader::Outgoing out = reader.outgoing(client);
    const TcpReader::Incoming in = reader.incoming(server);
    EXPECT_FALSE(out.data.empty());
    EXPECT_FALSE(in.data.empty());
    const uint32_t doubled = in.next - (out.next - static_cast<uint32_t>(out.data.size()));
    ASSERT_LE(doubled, out.data.size());
    EXPECT_TRUE(in.data + out.data.substr(doubled) == written);
  }
  EXPECT_EQ(option(client, SOL_SOCKET, SO_REUSEADDR), 1);
  EXPECT_EQ(option(server, SOL_SOCKET, SO_REUSEADDR), 0);
  EXPECT_EQ(read_some(server, 100), written.substr(0, 100));  // and not EPERM
}

// Linux 6.7 can do it in one system call, from which no SIGKILL takes the agent.
TEST_F(TcpReading, AKilledReaderLeavesNoConnectionInRepairMode) {
  const Pair pair;
  ASSERT_EQ(::write(pair.client.get(), "data", 4), 4);
  TcpReader probe;
  probe.outgoing(pair.client.get());
  if (!probe.atomic()) GTEST_SKIP() << "no io_uring for socket options";
  std::minstd_rand random(4711);
  for (int round = 0; round < 300; ++round) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      TcpReader reader;
      for (;;) {
        reader.outgoing(pair.client.get());
        reader.incoming(pair.server.get());
      }
    }
    ::usleep(std::uniform_int_distribution<useconds_t>(500, 3'000)(random));
    ::kill(pid, SIGKILL);
    ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);
    char bytes[8];
    ASSERT_EQ(::read(pair.server.get(), bytes, sizeof bytes), 4) << errno_text(errno) << " in round " << round;
    ASSERT_EQ(::read(pair.client.get(), bytes, sizeof bytes), -1);
    ASSERT_EQ(errno, EAGAIN) << errno_text(errno) << " in round " << round;
    ASSERT_EQ(::write(pair.client.get(), "data", 4), 4);
    pollfd wait{pair.server.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&wait, 1, 1000), 1);
  }
}

TEST_F(TcpReading, WhatIsNotAcceptedYetPasses) {
  Child child([] { must(listening(4) == 3 && connecting(3) == 4 && ::write(4, "x", 1) == 1); });
  const Findings findings = check(child);
  ASSERT_EQ(findings.size(), 2u);
  EXPECT_TRUE(findings[0].transient && findings[1].transient);
  EXPECT_THAT(findings[0].what, HasSubstr("waiting to be accepted"));
  EXPECT_THAT(findings[1].what, HasSubstr("waiting to be accepted"));
  EXPECT_THAT(error_of(ErrorKind::kBusy, [&] { capture(child); }), HasSubstr("accepted"));
}

TEST_F(TcpReading, WhatIsBeingConnectedPasses) {
  Child child([] {
    must(listening(0) == 3);
    for (int i = 0; i < 4; ++i) connecting(3);  // more than the listener takes
  });
  bool seen = false;
  for (const Finding& finding : check(child)) {
    EXPECT_TRUE(finding.transient) << to_sentence(finding);
    seen = seen || finding.what.find("being made") != std::string::npos;
  }
  EXPECT_TRUE(seen);
}

TEST_F(TcpReading, UrgentDataIsNotSaved) {
  Child child([] {
    must(listening(4) == 3 && connecting(3) == 4 && ::accept(3, nullptr, nullptr) == 5);
    must(::send(4, "!", 1, MSG_OOB) == 1);
  });
  const Findings findings = check(child);
  ASSERT_FALSE(findings.empty());
  EXPECT_THAT(findings[0].what, HasSubstr("urgent data"));
}

TEST_F(TcpReading, APortInUseIsNamed) {
  Child child([] { must(listening(4) == 3); });
  const Captured captured = capture(child);
  const auto port = static_cast<uint16_t>(captured.file(3).tcp().local().port());
  const std::string error = error_of(ErrorKind::kSystem, [&] { Restored restored(captured); });
  EXPECT_THAT(error, HasSubstr("127.0.0.1:" + std::to_string(port)));
  EXPECT_THAT(error, HasSubstr("end the program that uses the port"));
}

TEST(InetAddressTest, TextAndMapping) {
  const InetAddress four = *InetAddress::parse("10.0.0.7");
  EXPECT_EQ(four.text(), "10.0.0.7:0");
  EXPECT_EQ(InetAddress::parse("fe80::1")->text(), "[fe80::1]:0");
  EXPECT_FALSE(InetAddress::parse("10.0.0.7:80") || InetAddress::parse("host"));
  sockaddr_storage mapped;
  ASSERT_EQ(four.to_sockaddr(AF_INET6, mapped), sizeof(sockaddr_in6));
  EXPECT_EQ(InetAddress::of(mapped), four);
  AddressMap map;
  map.set(four.ip, InetAddress::parse("127.0.0.3")->ip);
  EXPECT_EQ(map.local(four).text(), "127.0.0.3:0");
  EXPECT_EQ(map.remote(*InetAddress::parse("10.0.0.8")).text(), "10.0.0.8:0");
  EXPECT_TRUE(map.is_local(map.local(*InetAddress::parse("198.51.100.9"))));
  EXPECT_EQ(map.local(*InetAddress::parse("127.0.0.5")).text(), "127.0.0.5:0");
  EXPECT_EQ(map.local(*InetAddress::parse("0.0.0.0")).text(), "0.0.0.0:0");
  // What was set is for what this host had, not for what it has; loopback is nothing that others reach, unless it is
  // all.
  EXPECT_NE(map.reachable(four).text(), "127.0.0.3:0");
  EXPECT_EQ(map.reachable(*InetAddress::parse("127.0.0.5")), map.reachable(*InetAddress::parse("198.51.100.9")));
}

// A former life's connections must not keep its port.
TEST_F(TcpReading, LeftoversOfAPortAreEnded) {
  uint16_t port = 0;
  InetAddress here, there;
  {
    Pair pair;
    here = InetAddress::local_of(pair.server.get());
    there = InetAddress::local_of(pair.client.get());
    port = ntohs(name_of(pair.listener.get()).sin_port);
    pair.server.reset();  // closes first: its end lingers
    pair.client.reset();
  }
  const sockaddr_in address = loopback(port);
  const UniqueFd again(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_NE(::bind(again.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  InetDiagSocket kernel;
  ASSERT_TRUE(kernel.query(here, there).has_value());
  EXPECT_TRUE(kernel.query(here, there)->leftover());
  kernel.end_leftovers(here, there, 0);
  EXPECT_FALSE(kernel.query(here, there).has_value());
  EXPECT_EQ(::bind(again.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
}

// The kernel asks at bind(2) only.
TEST(SharedPort, MayBeSharedNoMoreAndIsAllTheSame) {
  for (const int type : {SOCK_STREAM, SOCK_DGRAM}) {
    Captured captured;
    sockaddr_in address = loopback();
    {
      Child child([&] {
        const int on = 1, off = 0;
        for (const int fd : {3, 4}) {
          must(::socket(AF_INET, type, 0) == fd && ::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
          must(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
          address = name_of(fd);
          if (type == SOCK_STREAM) must(::listen(fd, 5) == 0);
        }
        must(::setsockopt(3, SOL_SOCKET, SO_REUSEPORT, &off, sizeof off) == 0);
        must(::setsockopt(4, SOL_SOCKET, SO_REUSEPORT, &off, sizeof off) == 0);
      });
      captured = capture(child);
    }
    Restored restored(captured);
    (*restored).apply_side_effects();
    EXPECT_EQ(name_of(restored.fd(3)).sin_port, name_of(restored.fd(4)).sin_port);
    for (const int fd : {3, 4}) EXPECT_EQ(option(restored.fd(fd), SOL_SOCKET, SO_REUSEPORT), 0);
  }
}

TEST(SocketOption, FiltersAreKept) {
  Child child([] {
    sock_filter accept_all = BPF_STMT(BPF_RET | BPF_K, 0xffffffff);
    const sock_fprog program{1, &accept_all};
    must(::socket(AF_INET, SOCK_DGRAM, 0) == 3);
    must(::setsockopt(3, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    const int on = 1;
    must(::setsockopt(3, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof on) == 0);
  });
  EXPECT_TRUE(check(child).empty());
  const Captured captured = capture(child);
  Restored restored(captured);
  socklen_t instructions = 0;
  EXPECT_EQ(::getsockopt(restored.fd(3), SOL_SOCKET, SO_GET_FILTER, nullptr, &instructions), 0);
  EXPECT_EQ(instructions, 1u);
  EXPECT_EQ(option(restored.fd(3), SOL_SOCKET, SO_LOCK_FILTER), 1);
}

}  // namespace
}  // namespace icp::test
