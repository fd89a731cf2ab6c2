// SPDX-License-Identifier: GPL-2.0-or-later
// Descriptors that few programs have, there and back, in real processes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <fstream>
#include <string>

#include "tests/engine/roundtrip.h"
#include "tests/engine/socket_options.h"
#include "tests/engine/tcp_peer.h"

namespace icp::test {
namespace {

constexpr int kUdpLite = 136, kIcmp = 1;

class DescriptorsRoundtrip : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
    ASSERT_EQ(::chown(directory_.path().c_str(), 65534, 65534), 0);
  }
  TempDir directory_;
};

int connected(int type, int protocol, const sockaddr_storage& to) {
  const int fd = ::socket(AF_INET, type, protocol);
  CHECK_OR_DIE(fd >= 0 && ::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(sockaddr_in)) == 0);
  return fd;
}

TEST_F(DescriptorsRoundtrip, DatagramSocketsThatAreShut) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const int server = ::socket(AF_INET, SOCK_DGRAM, 0);
                  bind_to(server, loopback(AF_INET, 0));
                  const int no_writing = connected(SOCK_DGRAM, 0, name_of(server));
                  const int no_reading = connected(SOCK_DGRAM, 0, name_of(server));
                  CHECK_OR_DIE(::shutdown(no_writing, SHUT_WR) == 0 && ::shutdown(no_reading, SHUT_RD) == 0);
                  set_option(server, SOL_SOCKET, SO_NO_CHECK, 1);
                  gate.ready_and_go();
                  CHECK_OR_DIE(::send(no_writing, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
                  char byte = 0;
                  CHECK_OR_DIE(::recv(no_reading, &byte, 1, 0) == 0 && ::send(no_reading, "x", 1, 0) == 1);
                  CHECK_OR_DIE(::recv(server, &byte, 1, 0) == 1 && get_option(server, SOL_SOCKET, SO_NO_CHECK) == 1);
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(DescriptorsRoundtrip, UdpLite) {
  if (const UniqueFd probe(::socket(AF_INET, SOCK_DGRAM, kUdpLite)); !probe) GTEST_SKIP() << "no UDP-Lite here";
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const int server = ::socket(AF_INET, SOCK_DGRAM, kUdpLite);
                  bind_to(server, loopback(AF_INET, 0));
                  const int client = connected(SOCK_DGRAM, kUdpLite, name_of(server));
                  set_option(client, kUdpLite, 10, 20);  // UDPLITE_SEND_CSCOV
                  gate.ready_and_go();
                  CHECK_OR_DIE(::send(client, "hello", 5, 0) == 5);
                  char text[8];
                  CHECK_OR_DIE(::recv(server, text, sizeof text, 0) == 5 && get_option(client, kUdpLite, 10) == 20);
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(DescriptorsRoundtrip, RawAndIcmpSocketsOfRoot) {
  if (::geteuid() != 0) GTEST_SKIP() << "raw sockets are root's";
  EXPECT_EQ(
      roundtrip(
          [](Gate& gate) {
            const int raw = ::socket(AF_INET, SOCK_RAW, kIcmp), own = ::socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
            CHECK_OR_DIE(raw >= 0 && own >= 0);
            set_option(raw, IPPROTO_RAW, 1, 0x55);  // ICMP_FILTER
            set_option(raw, IPPROTO_IP, IP_HDRINCL, 1);
            sockaddr_storage here = loopback(AF_INET, 0);
            bind_to(raw, here);
            gate.ready_and_go();
            CHECK_OR_DIE(get_option(raw, SOL_SOCKET, SO_PROTOCOL) == kIcmp && text_of(name_of(raw)) == "127.0.0.1:1");
            CHECK_OR_DIE(get_option(raw, IPPROTO_RAW, 1) == 0x55 && get_option(raw, IPPROTO_IP, IP_HDRINCL) == 1);
            CHECK_OR_DIE(get_option(own, SOL_SOCKET, SO_TYPE) == SOCK_RAW &&
                         get_option(own, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_RAW);
            return 0;
          },
          {.generations = 2, .as_root = true}),
      0);
}

TEST_F(DescriptorsRoundtrip, NetlinkSocketsWithTheirGroups) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const int fd = ::socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
                  sockaddr_nl name{};
                  name.nl_family = AF_NETLINK;
                  name.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR;
                  CHECK_OR_DIE(fd >= 0 && ::bind(fd, reinterpret_cast<sockaddr*>(&name), sizeof name) == 0);
                  set_option(fd, SOL_NETLINK, NETLINK_EXT_ACK, 1);
                  gate.ready_and_go();
                  socklen_t length = sizeof name;
                  CHECK_OR_DIE(::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) == 0);
                  CHECK_OR_DIE(name.nl_groups == (RTMGRP_LINK | RTMGRP_IPV4_IFADDR));
                  CHECK_OR_DIE(get_option(fd, SOL_NETLINK, NETLINK_EXT_ACK) == 1);
                  struct {
                    nlmsghdr header;
                    rtgenmsg body;
                  } request{};
                  request.header = {sizeof request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 7, 0};
                  CHECK_OR_DIE(::send(fd, &request, sizeof request, 0) == sizeof request);
                  alignas(nlmsghdr) char answer[32768];
                  CHECK_OR_DIE(::recv(fd, answer, sizeof answer, 0) > 0);
                  CHECK_OR_DIE(reinterpret_cast<nlmsghdr*>(answer)->nlmsg_type == RTM_NEWLINK);
                  return 0;
                },
                {.generations = 2}),
            0);
}

volatile sig_atomic_t broken_lease = 0;

TEST_F(DescriptorsRoundtrip, Leases) {
  const std::string path = directory_.path() + "/leased";
  EXPECT_EQ(roundtrip(
                [&](Gate& gate) {
                  const int fd = ::open(path.c_str(), O_RDONLY | O_CREAT, 0600);
                  CHECK_OR_DIE(::fcntl(fd, F_SETLEASE, F_RDLCK) == 0 && ::fcntl(fd, F_SETSIG, SIGUSR1) == 0);
                  ::signal(SIGUSR1, [](int) { broken_lease = 1; });
                  gate.ready_and_go();
                  CHECK_OR_DIE(::fcntl(fd, F_GETLEASE) == F_RDLCK && broken_lease == 0);
                  CHECK_OR_DIE(::open(path.c_str(), O_WRONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK);
                  CHECK_OR_DIE(broken_lease == 1);
                  return 0;
                },
                {.generations = 2}),
            0);
}

// F_SETSIG, with an owner and without, and F_SETOWN of files that never send a signal.
TEST_F(DescriptorsRoundtrip, SignalsAndOwnersOfAnyFile) {
  const std::string path = directory_.path() + "/owned";
  EXPECT_EQ(roundtrip(
                [&](Gate& gate) {
                  int pipe[2];
                  CHECK_OR_DIE(::pipe(pipe) == 0);
                  const int files[] = {::open(path.c_str(), O_RDWR | O_CREAT, 0600), ::open("/dev/null", O_RDWR),
                                       ::eventfd(0, 0), pipe[0], ::memfd_create("owned", 0)};
                  for (const int fd : files) CHECK_OR_DIE(fd >= 0 && ::fcntl(fd, F_SETSIG, SIGRTMIN) == 0);
                  const int owned = ::open(path.c_str(), O_RDONLY);
                  const f_owner_ex thread{F_OWNER_TID, ::gettid()};
                  CHECK_OR_DIE(owned >= 0 && ::fcntl(owned, F_SETOWN_EX, &thread) == 0);
                  gate.ready_and_go();
                  for (const int fd : files) CHECK_OR_DIE(::fcntl(fd, F_GETSIG) == SIGRTMIN);
                  f_owner_ex now{};
                  CHECK_OR_DIE(::fcntl(owned, F_GETSIG) == 0 && ::fcntl(owned, F_GETOWN_EX, &now) == 0);
                  CHECK_OR_DIE(now.type == F_OWNER_TID && now.pid == ::gettid());
                  return 0;
                },
                {.generations = 2}),
            0);
}

std::string first_line(int fd) {
  char text[256];
  const ssize_t got = ::pread(fd, text, sizeof text, 0);
  CHECK_OR_DIE(got > 0);
  return std::string(text, static_cast<size_t>(got)).substr(0, 64);
}

TEST_F(DescriptorsRoundtrip, FilesAboutProcesses) {
  EXPECT_EQ(
      roundtrip(
          [](Gate& gate) {
            const int own = ::open("/proc/self/status", O_RDONLY), task = ::open("/proc/self/task", O_RDONLY);
            const pid_t child = ::fork();
            if (child == 0) {
              ::pause();
              ::_exit(0);
            }
            const std::string path = "/proc/" + std::to_string(child) + "/stat";
            const int alive = ::open(path.c_str(), O_RDONLY), again = ::dup(alive);
            const pid_t brief = ::fork();
            if (brief == 0) ::_exit(0);
            const int ended = ::open(("/proc/" + std::to_string(brief) + "/stat").c_str(), O_RDONLY);
            const int network = ::open("/proc/self/ns/net", O_RDONLY);
            CHECK_OR_DIE(ended >= 0 && network >= 0 && ::waitpid(brief, nullptr, 0) == brief);
            gate.ready_and_go();
            CHECK_OR_DIE(first_line(own).starts_with("Name:") && first_line(alive).starts_with(std::to_string(child)));
            char byte = 0;
            CHECK_OR_DIE(::read(alive, &byte, 1) == 1 && ::lseek(again, 0, SEEK_CUR) == 1);
            CHECK_OR_DIE(::read(ended, &byte, 1) < 0 && errno == ESRCH);
            CHECK_OR_DIE(::faccessat(task, std::to_string(::getpid()).c_str(), F_OK, 0) == 0);
            struct stat here, there;
            CHECK_OR_DIE(::fstat(network, &there) == 0 && ::stat("/proc/self/ns/net", &here) == 0);
            CHECK_OR_DIE(here.st_ino == there.st_ino && ::kill(child, SIGKILL) == 0);
            return 0;
          },
          {.generations = 2, .same_view = false}),
      0);
}

TEST_F(DescriptorsRoundtrip, PidfdsOfOneEndedProcess) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const auto two_of = [](int* fds) {
                    const pid_t child = ::fork();
                    if (child == 0) ::_exit(3);
                    for (int i = 0; i < 2; i++) fds[i] = static_cast<int>(::syscall(SYS_pidfd_open, child, 0));
                    CHECK_OR_DIE(fds[1] >= 0 && ::waitpid(child, nullptr, 0) == child);
                  };
                  int one[2], other[2];
                  two_of(one);
                  two_of(other);
                  struct stat before[2];
                  CHECK_OR_DIE(::fstat(one[0], &before[0]) == 0 && ::fstat(one[1], &before[1]) == 0);
                  const bool told = before[0].st_ino == before[1].st_ino;  // all alike before Linux 6.9
                  gate.ready_and_go();
                  struct stat after[3];
                  CHECK_OR_DIE(::fstat(one[0], &after[0]) == 0 && ::fstat(one[1], &after[1]) == 0 &&
                               ::fstat(other[1], &after[2]) == 0);
                  CHECK_OR_DIE(told == (after[0].st_ino == after[1].st_ino));
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(DescriptorsRoundtrip, ARemovedSymbolicLink) {
  const std::string path = directory_.path() + "/link";
  EXPECT_EQ(roundtrip(
                [&](Gate& gate) {
                  CHECK_OR_DIE(::symlink("somewhere", path.c_str()) == 0);
                  const int fd = ::open(path.c_str(), O_PATH | O_NOFOLLOW);
                  CHECK_OR_DIE(fd >= 0 && ::unlink(path.c_str()) == 0);
                  gate.ready_and_go();
                  char text[32];
                  CHECK_OR_DIE(::readlinkat(fd, "", text, sizeof text) == 9 && std::memcmp(text, "somewhere", 9) == 0);
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(DescriptorsRoundtrip, AProgramInAMemfdThatIsOpen) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const int fd = ::memfd_create("program", 0);
                  std::ifstream in("/bin/true", std::ios::binary);
                  const std::string program{std::istreambuf_iterator<char>(in), {}};
                  CHECK_OR_DIE(::write(fd, program.data(), program.size()) == static_cast<ssize_t>(program.size()));
                  gate.ready_and_go();
                  const pid_t child = ::fork();
                  if (child == 0) {
                    char* const arguments[] = {const_cast<char*>("true"), nullptr};
                    ::fexecve(fd, arguments, environ);
                    ::_exit(1);
                  }
                  int status = -1;
                  CHECK_OR_DIE(::waitpid(child, &status, 0) == child && status == 0);
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(DescriptorsRoundtrip, FlagsOfPipesAndTimesOfRemovedFiles) {
  const std::string path = directory_.path() + "/removed";
  EXPECT_EQ(
      roundtrip(
          [&](Gate& gate) {
            int ends[2];
            CHECK_OR_DIE(::pipe(ends) == 0);
            const int flags[2] = {::fcntl(ends[0], F_GETFL), ::fcntl(ends[1], F_GETFL)};
            const int file = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
            const timespec times[2] = {{1000, 0}, {2000, 5}};
            CHECK_OR_DIE(::write(file, "text", 4) == 4 && ::futimens(file, times) == 0 && ::unlink(path.c_str()) == 0);
            gate.ready_and_go();
            CHECK_OR_DIE(::fcntl(ends[0], F_GETFL) == flags[0] && ::fcntl(ends[1], F_GETFL) == flags[1]);
            struct stat status;
            CHECK_OR_DIE(::fstat(file, &status) == 0 && status.st_mtim.tv_sec == 2000 && status.st_mtim.tv_nsec == 5);
            return 0;
          },
          {.generations = 2}),
      0);
}

void send_descriptor(int socket, int fd) {
  char byte = 'd';
  iovec data{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  CHECK_OR_DIE(::sendmsg(socket, &message, 0) == 1);
}

int take_descriptor(int socket) {
  char byte = 0;
  iovec data{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  int fd = -1;
  CHECK_OR_DIE(::recvmsg(socket, &message, 0) == 1 && CMSG_FIRSTHDR(&message) != nullptr);
  std::memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  return fd;
}

TEST_F(DescriptorsRoundtrip, APipeWhoseOnlyReaderIsOnItsWay) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  int ends[2], sockets[2];
                  CHECK_OR_DIE(::pipe(ends) == 0 && ::socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
                  send_descriptor(sockets[0], ends[0]);
                  ::close(ends[0]);
                  gate.ready_and_go();
                  const int reader = take_descriptor(sockets[1]);
                  char text[8];
                  CHECK_OR_DIE(::write(ends[1], "hello", 5) == 5 && ::read(reader, text, sizeof text) == 5);
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(DescriptorsRoundtrip, AWatchOfARemovedFile) {
  const std::string path = directory_.path() + "/watched";
  EXPECT_EQ(roundtrip(
                [&](Gate& gate) {
                  const int file = ::open(path.c_str(), O_RDWR | O_CREAT, 0600), events = ::inotify_init();
                  CHECK_OR_DIE(::inotify_add_watch(events, path.c_str(), IN_MODIFY) == 1);
                  CHECK_OR_DIE(::unlink(path.c_str()) == 0);
                  gate.ready_and_go();
                  CHECK_OR_DIE(::write(file, "x", 1) == 1);
                  inotify_event event{};
                  CHECK_OR_DIE(::read(events, &event, sizeof event) == sizeof event && event.wd == 1);
                  CHECK_OR_DIE(event.mask == IN_MODIFY);
                  return 0;
                },
                {.generations = 2, .same_view = false}),
            0);
}

socklen_t unix_name(const std::string& path, sockaddr_un& name) {
  name = {};
  name.sun_family = AF_UNIX;
  std::memcpy(name.sun_path, path.data(), path.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
}

TEST_F(DescriptorsRoundtrip, DatagramSocketsConnectedToNamesThatAreGone) {
  const std::string path = directory_.path() + "/there/name";
  EXPECT_EQ(roundtrip(
                [&](Gate& gate) {
                  CHECK_OR_DIE(::mkdir((directory_.path() + "/there").c_str(), 0700) == 0);
                  sockaddr_un name;
                  const socklen_t length = unix_name(path, name);
                  const int receiver = ::socket(AF_UNIX, SOCK_DGRAM, 0);
                  CHECK_OR_DIE(::bind(receiver, reinterpret_cast<sockaddr*>(&name), length) == 0);
                  int senders[2];
                  for (int& sender : senders) {
                    sender = ::socket(AF_UNIX, SOCK_DGRAM, 0);
                    CHECK_OR_DIE(::connect(sender, reinterpret_cast<sockaddr*>(&name), length) == 0);
                  }
                  CHECK_OR_DIE(::unlink(path.c_str()) == 0 && ::rmdir((directory_.path() + "/there").c_str()) == 0);
                  gate.ready_and_go();
                  char text[8];
                  for (const int sender : senders) {
                    CHECK_OR_DIE(::send(sender, "hello", 5, 0) == 5 && ::recv(receiver, text, sizeof text, 0) == 5);
                    sockaddr_un peer{};
                    socklen_t peer_length = sizeof peer;
                    CHECK_OR_DIE(::getpeername(sender, reinterpret_cast<sockaddr*>(&peer), &peer_length) == 0);
                    CHECK_OR_DIE(path == peer.sun_path);
                  }
                  CHECK_OR_DIE(::access(path.c_str(), F_OK) != 0);
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(DescriptorsRoundtrip, ConnectionsThatWaitAtANameThatIsGone) {
  for (const bool relative : {false, true}) {
    EXPECT_EQ(roundtrip(
                  [&](Gate& gate) {
                    CHECK_OR_DIE(::chdir(directory_.path().c_str()) == 0);
                    sockaddr_un name;
                    const socklen_t length = unix_name(relative ? "listener" : directory_.path() + "/listener", name);
                    const int listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
                    CHECK_OR_DIE(::bind(listener, reinterpret_cast<sockaddr*>(&name), length) == 0);
                    CHECK_OR_DIE(::listen(listener, 4) == 0);
                    int clients[2];
                    for (int& client : clients) {
                      client = ::socket(AF_UNIX, SOCK_STREAM, 0);
                      CHECK_OR_DIE(::connect(client, reinterpret_cast<sockaddr*>(&name), length) == 0);
                    }
                    CHECK_OR_DIE(::unlink(name.sun_path) == 0);
                    gate.ready_and_go();
                    for (const int client : clients) {
                      const int accepted = ::accept(listener, nullptr, nullptr);
                      char byte = 0;
                      CHECK_OR_DIE(::write(client, &client, 1) == 1 && ::read(accepted, &byte, 1) == 1);
                      CHECK_OR_DIE(byte == static_cast<char>(client));
                    }
                    return 0;
                  },
                  {.generations = 2}),
              0);
  }
}

}  // namespace
}  // namespace icp::test
