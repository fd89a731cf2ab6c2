// SPDX-License-Identifier: GPL-2.0-or-later
// Open files there and back, in real processes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

class FilesRoundtrip : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
    ASSERT_EQ(::chown(directory_.path().c_str(), 65534, 65534), 0);
  }
  TempDir directory_;
};

TEST_F(FilesRoundtrip, RegularFileOffsetAppendAndCutBack) {
  const std::string path = directory_.path() + "/log";
  EXPECT_EQ(roundtrip(
                [&path](Gate& gate) {
                  const int log = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
                  CHECK_OR_DIE(::write(log, "before", 6) == 6);
                  const int reader = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
                  CHECK_OR_DIE(::lseek(reader, 3, SEEK_SET) == 3);
                  const int shared = ::dup(reader);
                  gate.ready();
                  gate.go();
                  CHECK_OR_DIE(::lseek(shared, 0, SEEK_CUR) == 3);
                  CHECK_OR_DIE(::lseek(reader, 1, SEEK_CUR) == 4 && ::lseek(shared, 0, SEEK_CUR) == 4);
                  CHECK_OR_DIE(::fcntl(reader, F_GETFD) == FD_CLOEXEC && ::fcntl(shared, F_GETFD) == 0);
                  CHECK_OR_DIE((::fcntl(log, F_GETFL) & (O_APPEND | O_ACCMODE)) == (O_APPEND | O_WRONLY));
                  CHECK_OR_DIE(::write(log, "after", 5) == 5);
                  struct stat status;
                  CHECK_OR_DIE(::stat(path.c_str(), &status) == 0 && status.st_size == 11);
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(FilesRoundtrip, PipesWithDataBetweenProcesses) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  int ends[2], back[2];
                  CHECK_OR_DIE(::pipe(ends) == 0 && ::pipe(back) == 0);
                  CHECK_OR_DIE(::write(back[1], "in flight", 9) == 9);
                  const pid_t child = ::fork();
                  if (child == 0) {
                    char text[16];
                    CHECK_OR_DIE(::read(ends[0], text, sizeof text) == 5 && std::memcmp(text, "hello", 5) == 0);
                    ::_exit(0);
                  }
                  gate.ready_and_go();
                  char text[16];
                  CHECK_OR_DIE(::read(back[0], text, sizeof text) == 9 && std::memcmp(text, "in flight", 9) == 0);
                  CHECK_OR_DIE(::write(ends[1], "hello", 5) == 5);
                  int status = 0;
                  CHECK_OR_DIE(::waitpid(child, &status, 0) == child && status == 0);
                  return 0;
                },
                {.generations = 3, .versions = 2}),
            0);
}

TEST_F(FilesRoundtrip, EventsTimersSignalsEpoll) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const int event = ::eventfd(3, EFD_NONBLOCK);
                  const int timer = ::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
                  const itimerspec time{{0, 0}, {50, 0}};
                  CHECK_OR_DIE(::timerfd_settime(timer, 0, &time, nullptr) == 0);
                  sigset_t set;
                  sigemptyset(&set);
                  sigaddset(&set, SIGUSR1);
                  sigprocmask(SIG_BLOCK, &set, nullptr);
                  const int signals = ::signalfd(-1, &set, SFD_NONBLOCK);
                  CHECK_OR_DIE(::raise(SIGUSR1) == 0);
                  const int epoll = ::epoll_create1(0);
                  epoll_event item{.events = EPOLLIN, .data = {.u64 = 0x1234567890ull}};
                  CHECK_OR_DIE(::epoll_ctl(epoll, EPOLL_CTL_ADD, event, &item) == 0);
                  gate.ready_and_go();
                  uint64_t value = 0;
                  CHECK_OR_DIE(::epoll_wait(epoll, &item, 1, 1000) == 1 && item.data.u64 == 0x1234567890ull);
                  CHECK_OR_DIE(::read(event, &value, 8) == 8 && value == 3);
                  CHECK_OR_DIE(::epoll_wait(epoll, &item, 1, 0) == 0);
                  CHECK_OR_DIE(::epoll_ctl(epoll, EPOLL_CTL_DEL, event, nullptr) == 0);
                  itimerspec rest;
                  CHECK_OR_DIE(::timerfd_gettime(timer, &rest) == 0 && rest.it_value.tv_sec > 30);
                  signalfd_siginfo info;
                  CHECK_OR_DIE(::read(signals, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1);
                  return 0;
                },
                {.generations = 2}),
            0);
}

// A set is woken by the signals of the process that put the signalfd in.
TEST_F(FilesRoundtrip, SignalfdWakesItsEpollSets) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  sigset_t set;
                  sigemptyset(&set);
                  sigaddset(&set, SIGUSR1);
                  sigprocmask(SIG_BLOCK, &set, nullptr);
                  const int inner = ::epoll_create1(0), outer = ::epoll_create1(0), moved = ::epoll_create1(0);
                  epoll_event item{.events = EPOLLIN, .data = {.u64 = 7}};
                  int signals = ::signalfd(-1, &set, SFD_NONBLOCK);
                  CHECK_OR_DIE(::epoll_ctl(inner, EPOLL_CTL_ADD, signals, &item) == 0);
                  CHECK_OR_DIE(::epoll_ctl(outer, EPOLL_CTL_ADD, inner, &item) == 0);
                  // Put in under a number that is another file's now.
                  CHECK_OR_DIE(::dup2(signals, 50) == 50 && ::epoll_ctl(moved, EPOLL_CTL_ADD, 50, &item) == 0);
                  const int event = ::eventfd(5, EFD_NONBLOCK);
                  CHECK_OR_DIE(::dup3(event, 50, O_CLOEXEC) == 50);
                  const pid_t parent = ::getpid();
                  gate.ready_and_go();
                  const pid_t child = ::fork();
                  if (child == 0) {
                    for (int i = 0; i < 3; ++i) {
                      ::usleep(100'000);
                      ::kill(parent, SIGUSR1);
                    }
                    ::_exit(0);
                  }
                  for (const int waiting : {inner, outer, moved}) {
                    CHECK_OR_DIE(::epoll_wait(waiting, &item, 1, 5000) == 1 && item.data.u64 == 7);
                    signalfd_siginfo info;
                    CHECK_OR_DIE(::read(signals, &info, sizeof info) == sizeof info);
                  }
                  uint64_t value = 0;
                  CHECK_OR_DIE(::fcntl(50, F_GETFD) == FD_CLOEXEC && ::read(50, &value, 8) == 8 && value == 5);
                  return 0;
                },
                {.generations = 2}),
            0);
}

// As sem_open(3) makes it: the creator's mapping says "(deleted)", those of who opens it by its name do not.
TEST_F(FilesRoundtrip, OneSharedFileUnderTwoNames) {
  const std::string name = "/dev/shm/icp-test-" + std::to_string(::getpid()), first = name + ".new",
                    third = name + ".b";
  EXPECT_EQ(roundtrip(
                [&](Gate& gate) {
                  const auto map = [](int fd) {
                    void* at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
                    CHECK_OR_DIE(at != MAP_FAILED);
                    return static_cast<volatile int*>(at);
                  };
                  int fd = ::open(first.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
                  CHECK_OR_DIE(fd >= 0 && ::ftruncate(fd, 4096) == 0);
                  volatile int* mine = map(fd);
                  CHECK_OR_DIE(::link(first.c_str(), name.c_str()) == 0 && ::link(first.c_str(), third.c_str()) == 0);
                  CHECK_OR_DIE(::unlink(first.c_str()) == 0 && ::close(fd) == 0);
                  const pid_t child = ::fork();
                  if (child == 0) {
                    const int by_name = ::open(name.c_str(), O_RDWR);
                    CHECK_OR_DIE(by_name >= 0 && ::munmap(const_cast<int*>(mine), 4096) == 0);
                    volatile int* its = map(by_name);
                    its[0] = 1;
                    while (its[1] == 0) ::usleep(1000);
                    its[2] = 3;
                    ::_exit(0);
                  }
                  while (mine[0] == 0) ::usleep(1000);
                  gate.ready_and_go();
                  mine[1] = 1;
                  int status = 0;
                  CHECK_OR_DIE(::waitpid(child, &status, 0) == child && status == 0 && mine[2] == 3);
                  for (const std::string& path : {name, third}) {
                    fd = ::open(path.c_str(), O_RDWR);
                    CHECK_OR_DIE(fd >= 0 && map(fd)[2] == 3 && ::close(fd) == 0);
                    CHECK_OR_DIE(::unlink(path.c_str()) == 0);
                  }
                  return 0;
                },
                {.generations = 2, .versions = 2, .same_view = false}),
            0);
  ::unlink(name.c_str());
  ::unlink(third.c_str());
}

TEST_F(FilesRoundtrip, UnixSocketPairWithDataInFlight) {
  EXPECT_EQ(
      roundtrip(
          [](Gate& gate) {
            int pair[2];
            CHECK_OR_DIE(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
            CHECK_OR_DIE(::send(pair[0], "one", 3, 0) == 3 && ::send(pair[0], "three", 5, 0) == 5);
            gate.ready_and_go();
            char text[16];
            CHECK_OR_DIE(::recv(pair[1], text, sizeof text, 0) == 3 && ::recv(pair[1], text, sizeof text, 0) == 5);
            CHECK_OR_DIE(::send(pair[1], "back", 4, 0) == 4 && ::recv(pair[0], text, sizeof text, 0) == 4);
            return 0;
          },
          {.generations = 2}),
      0);
}

// A pair as it is made, one that a child has made, and connections of a child to a path and to an abstract name.
TEST_F(FilesRoundtrip, UnixSocketsNameTheirPeers) {
  const std::string path = directory_.path() + "/peers";
  const auto peer_of = [](int fd) {
    ucred peer{};
    socklen_t length = sizeof peer;
    CHECK_OR_DIE(::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == ::getuid());
    return peer.pid;
  };
  const auto listen_on = [](const std::string& name, sockaddr_un& address, socklen_t& length) {
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, name.data(), name.size());
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK_OR_DIE(::bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0 && ::listen(fd, 4) == 0);
    return fd;
  };
  EXPECT_EQ(roundtrip(
                [&](Gate& gate) {
                  int own[2], carried[2];
                  sockaddr_un named{}, abstract{};
                  socklen_t named_length = 0, abstract_length = 0;
                  CHECK_OR_DIE(::socketpair(AF_UNIX, SOCK_STREAM, 0, own) == 0 && ::pipe(carried) == 0);
                  const int first = listen_on(path, named, named_length),
                            second = listen_on(std::string("\0icp-test-peers", 15) + std::to_string(::getpid()),
                                               abstract, abstract_length);
                  const pid_t child = ::fork();
                  if (child == 0) {
                    const int a = ::socket(AF_UNIX, SOCK_STREAM, 0), b = ::socket(AF_UNIX, SOCK_STREAM, 0);
                    CHECK_OR_DIE(::connect(a, reinterpret_cast<sockaddr*>(&named), named_length) == 0);
                    CHECK_OR_DIE(::connect(b, reinterpret_cast<sockaddr*>(&abstract), abstract_length) == 0);
                    for (;;) ::pause();
                  }
                  const int one = ::accept(first, nullptr, nullptr), two = ::accept(second, nullptr, nullptr);
                  CHECK_OR_DIE(peer_of(one) == child && peer_of(two) == child);
                  gate.ready_and_go();
                  CHECK_OR_DIE(peer_of(own[0]) == ::getpid() && peer_of(own[1]) == ::getpid());
                  CHECK_OR_DIE(peer_of(one) == child && peer_of(two) == child);
                  ::unlink(path.c_str());
                  CHECK_OR_DIE(::kill(child, SIGKILL) == 0 && ::waitpid(child, nullptr, 0) == child);
                  return 0;
                },
                {.generations = 3, .versions = 2}),
            0);
}

TEST_F(FilesRoundtrip, RemovedWorkingDirectory) {
  const std::string path = "/tmp/icp-test-cwd-" + std::to_string(::getpid());
  EXPECT_EQ(
      roundtrip(
          [&](Gate& gate) {
            CHECK_OR_DIE(::mkdir(path.c_str(), 0700) == 0 && ::chdir(path.c_str()) == 0 && ::rmdir(path.c_str()) == 0);
            gate.ready_and_go();
            char text[200];
            CHECK_OR_DIE(::getcwd(text, sizeof text) == nullptr && errno == ENOENT);
            CHECK_OR_DIE(::open("new", O_CREAT | O_WRONLY, 0600) < 0 && errno == ENOENT);
            CHECK_OR_DIE(::access(path.c_str(), F_OK) != 0 && ::chdir("/") == 0);
            return 0;
          },
          {.generations = 2}),
      0);
}

// What the program did after the version: it goes on with its file as of then.
TEST_F(FilesRoundtrip, TemporaryFilesThatAreGoneComeBack) {
  const std::string base = "/tmp/icp-test-gone-" + std::to_string(::getpid()), path = base + "/data";
  RoundtripOptions options;
  options.restore = [&](RestoreOptions&) { std::filesystem::remove_all(base); };
  EXPECT_EQ(roundtrip(
                [&](Gate& gate) {
                  CHECK_OR_DIE(::mkdir(base.c_str(), 0700) == 0 && ::chdir(base.c_str()) == 0);
                  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
                  CHECK_OR_DIE(fd >= 0 && ::write(fd, "12345", 5) == 5);
                  gate.ready_and_go();
                  char text[8] = "";
                  CHECK_OR_DIE(::pread(fd, text, 8, 0) == 5 && std::string(text) == "12345");
                  CHECK_OR_DIE(::unlink("data") == 0 && ::rmdir(base.c_str()) == 0);
                  return 0;
                },
                options),
            0);
}

// As a database has it: what is on disk is ahead of the version, or gone.
TEST_F(FilesRoundtrip, ContentOfOpenFilesComesBack) {
  const std::string base = "/tmp/icp-test-whole-" + std::to_string(::getpid()), path = base + "/data";
  constexpr size_t kBytes = 3 << 20;
  const auto content = [&](char first) {
    std::string text(kBytes, 'x');
    text[0] = text[kBytes - 1] = first;
    return text;
  };
  for (const bool gone : {false, true}) {
    RoundtripOptions options;
    options.versions = 3;
    options.session = [](SessionConfig& config) { config.checkpoint_files = CheckpointFiles::kOpen; };
    options.restore = [&](RestoreOptions&) {
      if (gone) {
        std::filesystem::remove_all(base);
      } else {
        std::ofstream(path, std::ios::binary) << content('z') << "more";
      }
    };
    EXPECT_EQ(roundtrip(
                  [&](Gate& gate) {
                    CHECK_OR_DIE(::mkdir(base.c_str(), 0755) == 0);
                    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT, 0640);
                    const std::string then = content('a');
                    CHECK_OR_DIE(fd >= 0 && ::fchmod(fd, 0640) == 0);
                    CHECK_OR_DIE(::write(fd, then.data(), then.size()) == static_cast<ssize_t>(then.size()));
                    gate.ready_and_go();
                    std::string now(kBytes + 10, '\0');
                    CHECK_OR_DIE(::pread(fd, now.data(), now.size(), 0) == static_cast<ssize_t>(kBytes));
                    now.resize(kBytes);
                    struct stat status {};
                    CHECK_OR_DIE(now == then && ::stat(path.c_str(), &status) == 0 && (status.st_mode & 0777) == 0640);
                    return 0;
                  },
                  options),
              0);
    std::filesystem::remove_all(base);
  }
}

// What a watch says, with the name, "" when there is nothing.
std::string next_event(int fd) {
  alignas(inotify_event) char buffer[4096];
  pollfd wait{fd, POLLIN, 0};
  if (::poll(&wait, 1, 200) != 1 || ::read(fd, buffer, sizeof buffer) <= 0) return "";
  const auto* event = reinterpret_cast<const inotify_event*>(buffer);
  return std::to_string(event->wd) + (event->len > 0 ? std::string(" ") + event->name : "");
}

void touch(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  CHECK_OR_DIE(fd >= 0 && ::write(fd, "x", 1) == 1 && ::close(fd) == 0);
}

TEST_F(FilesRoundtrip, InotifyWatches) {
  if (::geteuid() != 0) GTEST_SKIP() << "what is watched is found by file handles, which takes root";
  const std::string& top = directory_.path();
  EXPECT_EQ(
      roundtrip(
          [&top](Gate& gate) {
            CHECK_OR_DIE(::mkdir((top + "/below").c_str(), 0700) == 0 && ::mkdir((top + "/gone").c_str(), 0700) == 0);
            touch(top + "/log");
            touch(top + "/once");
            const int fd = ::inotify_init1(IN_NONBLOCK | IN_CLOEXEC), empty = ::inotify_init1(0);
            CHECK_OR_DIE(::inotify_add_watch(fd, (top + "/gone").c_str(), IN_CREATE) == 1);
            CHECK_OR_DIE(::inotify_add_watch(fd, (top + "/below").c_str(), IN_CREATE) == 2);
            CHECK_OR_DIE(::inotify_add_watch(fd, (top + "/log").c_str(), IN_MODIFY) == 3);
            CHECK_OR_DIE(::inotify_rm_watch(fd, 1) == 0 && next_event(fd) == "1");
            CHECK_OR_DIE(::inotify_add_watch(fd, (top + "/once").c_str(), IN_MODIFY | IN_ONESHOT) == 4);
            gate.ready_and_go();
            CHECK_OR_DIE(next_event(fd).empty());
            touch(top + "/below/new");
            CHECK_OR_DIE(next_event(fd) == "2 new");
            touch(top + "/log");
            CHECK_OR_DIE(next_event(fd) == "3");
            touch(top + "/once");
            CHECK_OR_DIE(next_event(fd) == "4" && ::inotify_rm_watch(fd, 4) < 0);
            CHECK_OR_DIE(::fcntl(empty, F_GETFD) == 0 && (::fcntl(empty, F_GETFL) & O_NONBLOCK) == 0);
            CHECK_OR_DIE((::fcntl(fd, F_GETFL) & O_NONBLOCK) != 0 && ::fcntl(fd, F_GETFD) == FD_CLOEXEC);
            CHECK_OR_DIE(::inotify_rm_watch(fd, 3) == 0 && next_event(fd) == "3");
            CHECK_OR_DIE(::inotify_add_watch(fd, top.c_str(), IN_CREATE) == 5);
            return 0;
          },
          {.generations = 3, .versions = 2}),
      0);
}

TEST_F(FilesRoundtrip, PidfdOfAnEndedProcess) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const pid_t child = ::fork();
                  if (child == 0) ::_exit(3);
                  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, child, 0));
                  CHECK_OR_DIE(fd >= 0 && ::waitpid(child, nullptr, 0) == child);
                  gate.ready_and_go();
                  pollfd wait{fd, POLLIN, 0};
                  CHECK_OR_DIE(::poll(&wait, 1, 1000) == 1);
                  CHECK_OR_DIE(::syscall(SYS_pidfd_send_signal, fd, 0, nullptr, 0) < 0 && errno == ESRCH);
                  CHECK_OR_DIE(::fcntl(fd, F_GETFD) == FD_CLOEXEC);
                  return 0;
                },
                {.generations = 2, .versions = 2}),
            0);
}

}  // namespace
}  // namespace icp::test
