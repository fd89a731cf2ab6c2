// SPDX-License-Identifier: GPL-2.0-or-later
// Unix sockets: pairs with data in flight, listeners, datagrams; refusals.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "files_test_util.h"

namespace icp::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

void put(int fd, const std::string& text) {
  must(::send(fd, text.data(), text.size(), MSG_DONTWAIT) == static_cast<ssize_t>(text.size()));
}

int bound(int type, const std::string& name) {
  const int fd = ::socket(AF_UNIX, type, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path, name.size());
  must(::bind(fd, reinterpret_cast<sockaddr*>(&address),
              static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size())) == 0);
  return fd;
}

int connected(int type, const std::string& name) {
  const int fd = ::socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path, name.size());
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address),
                static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size())) == 0) {
    return fd;
  }
  ::close(fd);
  return -1;
}

TEST(UnixSocket, PairsKeepTheDataBothWays) {
  const std::string big(120000, 'b');
  Child child([&] {
    int pair[2];
    must(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    must(::fcntl(4, F_SETFL, O_NONBLOCK) == 0);
    const int size = 300000, on = 1;
    must(::setsockopt(3, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    put(3, "for four");
    put(3, big);
    put(4, "for three");
    must(::setsockopt(4, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
  });
  for (int round = 0; round < 2; round++) {
    const Captured captured = capture(child);
    Restored restored(captured);
    EXPECT_EQ(read_some(restored.fd(4)), "for four" + big);
    EXPECT_EQ(read_some(restored.fd(3)), "for three");
    EXPECT_TRUE(would_block(restored.fd(4)));
    EXPECT_EQ(::write(restored.fd(4), "new", 3), 3);
    EXPECT_EQ(read_some(restored.fd(3)), "new");
    int on = 0;
    socklen_t length = sizeof on;
    EXPECT_EQ(::getsockopt(restored.fd(4), SOL_SOCKET, SO_PASSCRED, &on, &length), 0);
    EXPECT_EQ(on, 1);
    int size = 0;
    EXPECT_EQ(::getsockopt(restored.fd(3), SOL_SOCKET, SO_SNDBUF, &size, &length), 0);
    EXPECT_EQ(static_cast<uint32_t>(size), captured.file(3).unix_socket().send_buffer());
  }
}

TEST(UnixSocket, DatagramsAndPacketsKeepTheirBoundaries) {
  for (const int type : {SOCK_DGRAM, SOCK_SEQPACKET}) {
    Child child([&] {
      int pair[2];
      must(::socketpair(AF_UNIX, type, 0, pair) == 0);
      put(3, "one");
      put(3, "three");
      put(3, std::string(50000, 'x'));
    });
    const Captured captured = capture(child);
    EXPECT_THAT(captured.file(4).unix_socket().queue(), ElementsAre("one", "three", std::string(50000, 'x')));
    EXPECT_EQ(capture(child).file(4).unix_socket().queue_size(), 3);
    Restored restored(captured);
    EXPECT_EQ(read_some(restored.fd(4)), "one");
    EXPECT_EQ(read_some(restored.fd(4)), "three");
    EXPECT_EQ(read_some(restored.fd(4)).size(), 50000u);
  }
}

TEST(UnixSocket, AnEmptyDatagramIsOne) {
  Child child([&] {
    int pair[2];
    must(::socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    put(3, "");
    put(3, "x");
  });
  EXPECT_THAT(capture(child).file(4).unix_socket().queue(), ElementsAre("", "x"));
}

TEST(UnixSocket, ClosedPeerAndShutdown) {
  Child child([&] {
    int pair[2];
    must(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    put(4, "last words");
    ::close(4);
    must(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pair[0] == 4 && pair[1] == 5);
    put(4, "end");
    must(::shutdown(4, SHUT_WR) == 0);
  });
  const Captured captured = capture(child);
  Restored restored(captured);
  char byte;
  EXPECT_EQ(read_some(restored.fd(3)), "last words");
  EXPECT_EQ(::read(restored.fd(3), &byte, 1), 0);
  EXPECT_EQ(::send(restored.fd(3), "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(read_some(restored.fd(5)), "end");
  EXPECT_EQ(::read(restored.fd(5), &byte, 1), 0);
  EXPECT_EQ(::write(restored.fd(5), "x", 1), 1);
  EXPECT_EQ(read_some(restored.fd(4)), "x");
}

TEST(UnixSocket, ListenerComesBackUnderItsName) {
  TempDir dir("/tmp");
  for (const std::string& name : {dir / "sock", std::string("\0icp-files-test", 15)}) {
    Captured captured;
    {
      Child child([&] { must(bound(SOCK_STREAM, name) == 3 && ::listen(3, 17) == 0); });
      captured = capture(child);
      EXPECT_EQ(captured.file(3).unix_socket().backlog(), 17u);
      EXPECT_THAT(error_of(ErrorKind::kImage, [&] { Restored restored(captured); }), HasSubstr("in use"));
      const UniqueFd client(connected(SOCK_STREAM, name));
      ASSERT_TRUE(client);
      const Findings findings = check(child);
      ASSERT_EQ(findings.size(), 1u);
      EXPECT_TRUE(findings[0].transient);
      EXPECT_THAT(error_of(ErrorKind::kBusy, [&] { capture(child); }), HasSubstr("accepted"));
    }
    Restored restored(captured);
    EXPECT_LT(connected(SOCK_STREAM, name), 0);
    (*restored).apply_side_effects();
    const UniqueFd client(connected(SOCK_STREAM, name));
    EXPECT_TRUE(client);
    const UniqueFd server(::accept(restored.fd(3), nullptr, nullptr));
    EXPECT_EQ(::write(client.get(), "hi", 2), 2);
    EXPECT_EQ(read_some(server.get()), "hi");
  }
}

TEST(UnixSocket, ConnectedByNameInsideBecomesAPair) {
  TempDir dir("/tmp");
  const std::string name = dir / "sock";
  Captured captured;
  {
    Child child([&] {
      must(bound(SOCK_STREAM, name) == 3 && ::listen(3, 5) == 0 && connected(SOCK_STREAM, name) == 4);
      must(::accept(3, nullptr, nullptr) == 5);
      put(4, "question");
    });
    captured = capture(child);
  }
  Restored restored(captured);
  EXPECT_EQ(read_some(restored.fd(5)), "question");
  EXPECT_EQ(::write(restored.fd(5), "answer", 6), 6);
  EXPECT_EQ(read_some(restored.fd(4)), "answer");
}

TEST(UnixSocket, DatagramsToANameKeepTheirSenders) {
  const std::string receiver("\0icp-files-receiver", 19), sender("\0icp-files-sender", 17);
  Captured captured;
  {
    Child child([&] {
      must(bound(SOCK_DGRAM, receiver) == 3 && bound(SOCK_DGRAM, sender) == 4 && ::socket(AF_UNIX, SOCK_DGRAM, 0) == 5);
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      receiver.copy(address.sun_path, receiver.size());
      const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + receiver.size());
      const auto* name = reinterpret_cast<const sockaddr*>(&address);
      must(::sendto(4, "one", 3, 0, name, length) == 3 && ::sendto(5, "", 0, 0, name, length) == 0 &&
           ::sendto(4, "three", 5, 0, name, length) == 5);
    });
    EXPECT_TRUE(check(child).empty());
    captured = capture(child);
  }
  EXPECT_THAT(captured.file(3).unix_socket().queue_senders(), ElementsAre(sender, "", sender));
  Restored restored(captured);
  (*restored).apply_side_effects();
  for (const std::string& expected : {std::string("one"), std::string(), std::string("three")}) {
    char text[100];
    sockaddr_un from{};
    socklen_t length = sizeof from;
    const ssize_t got =
        ::recvfrom(restored.fd(3), text, sizeof text, MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from), &length);
    ASSERT_EQ(got, static_cast<ssize_t>(expected.size()));
    EXPECT_EQ(std::string(text, expected.size()), expected);
    EXPECT_EQ(length > offsetof(sockaddr_un, sun_path), !expected.empty());
    if (!expected.empty()) {
      EXPECT_EQ(std::string(from.sun_path, sender.size()), sender);
    }
  }
}

TEST(UnixSocket, DatagramClientIsConnectedAgain) {
  TempDir dir("/tmp");
  const std::string name = dir / "log";
  const UniqueFd server(bound(SOCK_DGRAM, name));
  Child child([&] { must(connected(SOCK_DGRAM, name) == 3 && ::socket(AF_UNIX, SOCK_STREAM, 0) == 4); });
  const Captured captured = capture(child);
  EXPECT_EQ(captured.file(3).unix_socket().peer_name(), name);
  Restored restored(captured);
  (*restored).apply_side_effects();
  EXPECT_EQ(::write(restored.fd(3), "entry", 5), 5);
  EXPECT_EQ(read_some(server.get()), "entry");
}

TEST(UnixSocket, RefusesConnectionsOut) {
  TempDir dir("/tmp");
  const std::string name = dir / "sock";
  const UniqueFd server(bound(SOCK_STREAM, name));
  ASSERT_EQ(::listen(server.get(), 5), 0);
  Child child([&] { must(connected(SOCK_STREAM, name) == 3); });
  EXPECT_THAT(error_of(ErrorKind::kBusy, [&] { capture(child); }), HasSubstr("not accepted yet"));
  const UniqueFd accepted(::accept4(server.get(), nullptr, nullptr, SOCK_CLOEXEC));
  EXPECT_THAT(error_of(ErrorKind::kRefused, [&] { capture(child); }), HasSubstr("connected to " + name));
}

void send_descriptor(int socket, char byte, int carried) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof carried)] = {};
  iovec data{&byte, 1};
  msghdr message{};
  message.msg_iov = &data, message.msg_iovlen = 1;
  message.msg_control = control, message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof carried);
  *reinterpret_cast<int*>(CMSG_DATA(header)) = carried;
  must(::sendmsg(socket, &message, 0) == 1);
}

int receive_descriptor(int socket, char& byte) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec data{&byte, 1};
  msghdr message{};
  message.msg_iov = &data, message.msg_iovlen = 1;
  message.msg_control = control, message.msg_controllen = sizeof control;
  if (::recvmsg(socket, &message, MSG_DONTWAIT) != 1) return -1;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  return header != nullptr ? *reinterpret_cast<const int*>(CMSG_DATA(header)) : -1;
}

// One that is open elsewhere, too, one that is only on its way, and one that travels in a socket that travels itself.
TEST(UnixSocket, DescriptorsOnTheirWayArrive) {
  TempDir dir("/tmp");
  const std::string path = dir.write("data", "0123456789");
  for (const int type : {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}) {
    Child child([&] {
      int pair[2], inner[2];
      must(::socketpair(AF_UNIX, type, 0, pair) == 0 && ::socketpair(AF_UNIX, type, 0, inner) == 0);
      const int shared = ::open(path.c_str(), O_RDONLY), lone = ::open(path.c_str(), O_RDWR);
      must(shared == 7 && lone == 8 && ::lseek(lone, 5, SEEK_SET) == 5);
      put(3, "a");
      send_descriptor(3, 'b', shared);
      send_descriptor(3, 'c', lone);
      send_descriptor(5, 'e', lone);
      send_descriptor(3, 'd', 6);
      must(::close(5) == 0 && ::close(6) == 0 && ::close(8) == 0);
    });
    EXPECT_TRUE(check(child).empty());
    for (int round = 0; round < 2; ++round) {
      const Captured captured = capture(child);
      SCOPED_TRACE(captured.file(4).unix_socket().ShortDebugString());
      Restored restored(captured);
      char byte = 0;
      EXPECT_EQ(read_some(restored.fd(4), 1), "a");
      const UniqueFd shared(receive_descriptor(restored.fd(4), byte));
      ASSERT_TRUE(shared && byte == 'b');
      EXPECT_EQ(::lseek(shared.get(), 3, SEEK_SET), 3);
      EXPECT_EQ(::lseek(restored.fd(7), 0, SEEK_CUR), 3) << "one open file with that of the process";
      const UniqueFd lone(receive_descriptor(restored.fd(4), byte));
      ASSERT_TRUE(lone && byte == 'c');
      EXPECT_EQ(::lseek(lone.get(), 0, SEEK_CUR), 5);
      const UniqueFd inner(receive_descriptor(restored.fd(4), byte));
      ASSERT_TRUE(inner && byte == 'd');
      const UniqueFd again(receive_descriptor(inner.get(), byte));
      ASSERT_TRUE(again && byte == 'e');
      EXPECT_EQ(::lseek(again.get(), 7, SEEK_SET), 7);
      EXPECT_EQ(::lseek(lone.get(), 0, SEEK_CUR), 7);
    }
  }
}

std::string name_of(int fd, bool peer = false) {
  sockaddr_un address{};
  socklen_t length = sizeof address;
  const int failed = (peer ? ::getpeername : ::getsockname)(fd, reinterpret_cast<sockaddr*>(&address), &length);
  if (failed != 0 || length <= offsetof(sockaddr_un, sun_path)) return "";
  std::string name(address.sun_path, length - offsetof(sockaddr_un, sun_path));
  while (name[0] != '\0' && name.back() == '\0') name.pop_back();
  return name;
}

TEST(UnixSocket, ConnectionsKeepTheirNames) {
  TempDir dir("/tmp");
  for (const std::string& name : {dir / "sock", std::string("\0icp-files-names", 16)}) {
    Captured captured;
    {
      Child child([&] {
        must(bound(SOCK_STREAM, name) == 3 && ::listen(3, 5) == 0);
        for (const int client : {4, 6}) {
          must(bound(SOCK_STREAM, name + std::to_string(client)) == client);
          sockaddr_un address{};
          address.sun_family = AF_UNIX;
          name.copy(address.sun_path, name.size());
          must(::connect(client, reinterpret_cast<sockaddr*>(&address),
                         static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size())) == 0);
          must(::accept(3, nullptr, nullptr) == client + 1);
        }
        put(4, "question");
      });
      captured = capture(child);
    }
    Restored restored(captured);
    (*restored).apply_side_effects();
    EXPECT_EQ(read_some(restored.fd(5)), "question");
    for (const int client : {4, 6}) {
      EXPECT_EQ(name_of(restored.fd(client)), name + std::to_string(client));
      EXPECT_EQ(name_of(restored.fd(client), true), name);
      EXPECT_EQ(name_of(restored.fd(client + 1)), name);
      EXPECT_EQ(name_of(restored.fd(client + 1), true), name + std::to_string(client));
    }
    const UniqueFd late(connected(SOCK_STREAM, name));
    EXPECT_TRUE(late);
    const UniqueFd accepted(::accept(restored.fd(3), nullptr, nullptr));
    EXPECT_TRUE(accepted);
  }
}

TEST(UnixSocket, PathsThatAreGoneTakenOrRelative) {
  TempDir dir("/tmp");
  std::filesystem::create_directory(dir / "gone");
  const std::string name = dir / "sock", gone = dir / "gone/sock";
  Captured captured;
  {
    Child child([&] {
      must(bound(SOCK_STREAM, name) == 3 && ::listen(3, 5) == 0 && ::unlink(name.c_str()) == 0);
      must(bound(SOCK_STREAM, name) == 4 && ::listen(4, 5) == 0);
      must(bound(SOCK_STREAM, gone) == 5 && ::listen(5, 5) == 0 && ::unlink(gone.c_str()) == 0);
      must(::rmdir((dir / "gone").c_str()) == 0);
      must(::chdir(dir.path().c_str()) == 0 && bound(SOCK_STREAM, "relative") == 6 && ::listen(6, 5) == 0);
      must(bound(SOCK_DGRAM, dir / "a") == 7 && connected(SOCK_DGRAM, dir / "a") == 8);
      must(connected(SOCK_STREAM, "relative") == 9 && ::accept(6, nullptr, nullptr) == 10);
    });
    EXPECT_TRUE(check(child).empty());
    captured = capture(child);
  }
  EXPECT_EQ(captured.file(6).unix_socket().place(), dir / "relative");
  Restored restored(captured);
  (*restored).apply_side_effects();
  const UniqueFd client(connected(SOCK_STREAM, name));
  ASSERT_TRUE(client);
  EXPECT_EQ(::fcntl(restored.fd(3), F_SETFL, O_NONBLOCK), 0);
  EXPECT_LT(::accept(restored.fd(3), nullptr, nullptr), 0) << "the older one has no path";
  EXPECT_TRUE(UniqueFd(::accept(restored.fd(4), nullptr, nullptr)));
  EXPECT_EQ(name_of(restored.fd(3)), name);
  EXPECT_EQ(name_of(restored.fd(5)), gone);
  EXPECT_FALSE(std::filesystem::exists(dir / "gone"));
  EXPECT_EQ(name_of(restored.fd(6)), "relative");
  EXPECT_EQ(name_of(restored.fd(9), true), "relative");
  EXPECT_TRUE(UniqueFd(connected(SOCK_STREAM, dir / "relative")));
}

TEST(UnixSocket, ConnectionsNotYetAcceptedWaitAgain) {
  TempDir dir("/tmp");
  for (const std::string& name : {dir / "sock", std::string("\0icp-files-wait", 15)}) {
    Captured captured;
    {
      Child child([&] {
        must(bound(SOCK_STREAM, name) == 3 && ::listen(3, 5) == 0);
        must(connected(SOCK_STREAM, name) == 4 && connected(SOCK_STREAM, name) == 5);
      });
      EXPECT_TRUE(check(child).empty());
      captured = capture(child);
    }
    Restored restored(captured);
    (*restored).apply_side_effects();
    for (const int client : {4, 5}) {
      EXPECT_EQ(::write(restored.fd(client), "x", 1), 1);
      const UniqueFd accepted(::accept(restored.fd(3), nullptr, nullptr));
      EXPECT_EQ(read_some(accepted.get(), 1), "x") << client;
    }
    EXPECT_EQ(::fcntl(restored.fd(3), F_SETFL, O_NONBLOCK), 0);
    EXPECT_LT(::accept(restored.fd(3), nullptr, nullptr), 0);
  }
}

TEST(UnixSocket, KeepsItsOptions) {
  Child child([] {
    int pair[2];
    must(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    const timeval wait{3, 0};
    const int low = 5;
    must(::setsockopt(3, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) == 0);
    must(::setsockopt(4, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low) == 0);
  });
  const Captured captured = capture(child);
  Restored restored(captured);
  timeval wait{};
  int low = 0;
  socklen_t length = sizeof wait;
  EXPECT_EQ(::getsockopt(restored.fd(3), SOL_SOCKET, SO_RCVTIMEO, &wait, &length), 0);
  EXPECT_EQ(wait.tv_sec, 3);
  length = sizeof low;
  EXPECT_EQ(::getsockopt(restored.fd(4), SOL_SOCKET, SO_RCVLOWAT, &low, &length), 0);
  EXPECT_EQ(low, 5);
}

TEST(UnixSocket, IsMadeByTheUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  Child child([] {
    int pair[2];
    must(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  });
  const Captured captured = capture(child);
  FileRestoreOptions opts = options();
  opts.identity = {65534, 65533, {}};
  Restored restored(captured, opts);
  ucred peer{};
  socklen_t length = sizeof peer;
  ASSERT_EQ(::getsockopt(restored.fd(3), SOL_SOCKET, SO_PEERCRED, &peer, &length), 0);
  EXPECT_EQ(peer.uid, 65534u);
  EXPECT_EQ(peer.gid, 65533u);
  EXPECT_EQ(::geteuid(), 0u);
}

}  // namespace
}  // namespace icp::test
