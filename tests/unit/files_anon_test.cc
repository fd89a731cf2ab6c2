// SPDX-License-Identifier: GPL-2.0-or-later
// eventfd, timerfd, signalfd, epoll, pidfd; and the parser of fdinfo.
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#include "engine/files/eventfd.h"
#include "engine/files/fd_info.h"
#include "files_test_util.h"

namespace icp::test {
namespace {

using ::testing::HasSubstr;

uint64_t count_of(int fd) {
  uint64_t value = 0;
  return ::read(fd, &value, sizeof value) == sizeof value ? value : 0;
}

TEST(FdInfo, ReadsLocksAndEpollItems) {
  const FdInfo info = FdInfo::parse(
      "pos:\t12\nflags:\t02100002\nmnt_id:\t27\nlock:\t1: FLOCK  ADVISORY  WRITE 5 fe:00:10 0 EOF\n"
      "lock:\t2: POSIX  ADVISORY  READ 5 fe:00:10 3 7\nlock:\t3: LEASE  ACTIVE    READ 5 fe:00:10 0 EOF\n"
      "tfd:        3 events: 40000019 data: 1122334455667788  pos:0 ino:40f sdev:10\n");
  EXPECT_EQ(info.position, 12u);
  EXPECT_TRUE(info.cloexec);
  EXPECT_EQ(info.flags, static_cast<uint32_t>(O_RDWR | 0100000));
  ASSERT_EQ(info.locks.size(), 3u);
  EXPECT_EQ(info.locks[0].kind, LockLine::Kind::kFlock);
  EXPECT_EQ(info.locks[1].type, F_RDLCK);
  EXPECT_EQ(info.locks[1].length, 5u);
  EXPECT_EQ(info.locks[2].kind, LockLine::Kind::kLease);
  const auto items = info.epoll_lines();
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].data, 0x1122334455667788u);
  EXPECT_EQ(items[0].ino, 0x40fu);
  EXPECT_EQ(items[0].dev, 16u);
}

TEST(FdInfo, TakesAnyText) {
  for (const char* text :
       {"", "\n\n", "pos", "pos:", "pos:\t-5\nflags:", "lock:\nlock:\t1:", "tfd: x\ntfd:", "flags: 99"}) {
    EXPECT_NO_THROW(FdInfo::parse(text).epoll_lines());
  }
}

TEST(Eventfd, CountModeAndFlags) {
  Child child([] {
    must(::eventfd(7, EFD_NONBLOCK) == 3 && ::eventfd(2, EFD_SEMAPHORE) == 4);
    const uint64_t big = 0xfffffffffffffff0;
    must(::eventfd(0, 0) == 5 && ::write(5, &big, 8) == 8 && ::dup(3) == 6);
  });
  const Captured captured = capture(child);
  EXPECT_EQ(captured.file(3).id(), captured.file(6).id());
  Restored restored(captured);
  EXPECT_EQ(count_of(restored.fd(3)), 7u);
  EXPECT_TRUE(::fcntl(restored.fd(3), F_GETFL) & O_NONBLOCK);
  EXPECT_FALSE(::fcntl(restored.fd(4), F_GETFL) & O_NONBLOCK);
  EXPECT_EQ(count_of(restored.fd(4)), 1u);
  EXPECT_EQ(count_of(restored.fd(4)), 1u);
  EXPECT_EQ(count_of(restored.fd(5)), 0xfffffffffffffff0u);
}

TEST(Eventfd, ModeCanBeFoundOutByReading) {
  for (const uint64_t count : {0u, 1u, 2u, 9u}) {
    for (const bool semaphore : {false, true}) {
      const UniqueFd fd(::eventfd(static_cast<unsigned>(count), EFD_NONBLOCK | (semaphore ? EFD_SEMAPHORE : 0)));
      EXPECT_EQ(probe_eventfd_semaphore(fd.get(), count), semaphore) << count;
      uint64_t left = 0;
      while (const uint64_t got = count_of(fd.get())) left += got;
      EXPECT_EQ(left, count) << semaphore;
    }
  }
}

TEST(Timerfd, TimeLeftIntervalAndTicks) {
  Child child([] {
    itimerspec setting{};
    setting.it_value = {100, 0}, setting.it_interval = {3, 5};
    must(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK) == 3 && ::timerfd_settime(3, 0, &setting, nullptr) == 0);
    setting.it_value = {0, 1000}, setting.it_interval = {0, 20'000'000};
    must(::timerfd_create(CLOCK_MONOTONIC, 0) == 4 && ::timerfd_settime(4, 0, &setting, nullptr) == 0);
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    setting.it_value = {now.tv_sec + 1000, 0}, setting.it_interval = {};
    must(::timerfd_create(CLOCK_REALTIME, 0) == 5);
    must(::timerfd_settime(5, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &setting, nullptr) == 0);
    must(::timerfd_create(CLOCK_BOOTTIME, 0) == 6);
    ::usleep(50'000);
  });
  const Captured captured = capture(child);
  EXPECT_GE(captured.file(4).timerfd().ticks(), 2u);
  Restored restored(captured);
  itimerspec left{};
  ASSERT_EQ(::timerfd_gettime(restored.fd(3), &left), 0);
  EXPECT_NEAR(static_cast<double>(left.it_value.tv_sec), 99, 1);
  EXPECT_EQ(left.it_interval.tv_sec, 3);
  EXPECT_EQ(left.it_interval.tv_nsec, 5);
  EXPECT_GE(count_of(restored.fd(4)), captured.file(4).timerfd().ticks());
  EXPECT_GE(count_of(restored.fd(4)), 1u) << "goes on ticking";
  ASSERT_EQ(::timerfd_gettime(restored.fd(5), &left), 0);
  EXPECT_NEAR(static_cast<double>(left.it_value.tv_sec), 999, 2);
  const std::string info = content("/proc/self/fdinfo/" + std::to_string(restored.fd(5)));
  EXPECT_THAT(info, HasSubstr("settime flags: 03"));
  ASSERT_EQ(::timerfd_gettime(restored.fd(6), &left), 0);
  EXPECT_EQ(left.it_value.tv_sec, 0);
}

TEST(Signalfd, KeepsItsMask) {
  Child child([] {
    sigset_t mask;
    ::sigemptyset(&mask);
    ::sigaddset(&mask, SIGUSR1);
    ::sigaddset(&mask, SIGRTMIN + 3);
    must(::signalfd(-1, &mask, SFD_NONBLOCK) == 3);
  });
  const Captured captured = capture(child);
  Restored restored(captured);
  const FdInfo info = FdInfo::parse(content("/proc/self/fdinfo/" + std::to_string(restored.fd(3))));
  EXPECT_EQ(info.number("sigmask", 16), (1ull << (SIGUSR1 - 1)) | (1ull << (SIGRTMIN + 3 - 1)));
  EXPECT_TRUE(::fcntl(restored.fd(3), F_GETFL) & O_NONBLOCK);
}

void add(int set, int fd, uint32_t events, uint64_t data) {
  epoll_event event{};
  event.events = events, event.data.u64 = data;
  must(::epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0);
}

std::vector<EpollLine> items(int fd) {
  auto lines = FdInfo::parse(content("/proc/self/fdinfo/" + std::to_string(fd))).epoll_lines();
  std::sort(lines.begin(), lines.end(), [](const auto& a, const auto& b) { return a.data < b.data; });
  return lines;
}

TEST(Epoll, WatchesTheSameFilesUnderTheSameNumbers) {
  Child child([] {
    must(::epoll_create1(0) == 3 && ::epoll_create1(0) == 4);
    must(::eventfd(1, 0) == 5 && ::eventfd(0, 0) == 6 && ::eventfd(1, 0) == 7);
    must(::dup2(5, 600) == 600);
    add(3, 5, EPOLLIN, 1);
    add(3, 6, EPOLLIN | EPOLLET, 2);
    add(3, 600, EPOLLIN, 3);
    add(3, 7, EPOLLIN | EPOLLONESHOT, 4);
    epoll_event fired[4];
    must(::epoll_wait(3, fired, 4, 0) == 3);  // 7 is disabled from here on
    must(::dup2(7, 8) == 8 && ::close(7) == 0);
    add(4, 3, EPOLLIN, 5);
    ::close(600);
  });
  const Captured captured = capture(child);
  ASSERT_EQ(captured.file(3).epoll().items_size(), 4);
  EXPECT_EQ(captured.file(4).epoll().items(0).file(), captured.file(3).id());
  Restored restored(captured);
  const auto lines = items(restored.fd(3));
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0].fd, 5);
  EXPECT_EQ(lines[1].events & EPOLLET, static_cast<uint32_t>(EPOLLET));
  EXPECT_EQ(lines[2].fd, 600);
  EXPECT_EQ(lines[3].fd, 7);
  EXPECT_EQ(lines[3].events & (EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP), 0u) << "has fired";
  epoll_event ready[8];
  ASSERT_EQ(::epoll_wait(restored.fd(3), ready, 8, 0), 2);
  EXPECT_EQ(ready[0].data.u64 + ready[1].data.u64, 4u);
  ASSERT_EQ(::epoll_wait(restored.fd(4), ready, 8, 0), 1);
  EXPECT_EQ(ready[0].data.u64, 5u);
}

TEST(Epoll, TellsDescriptorsOfOneNumberApart) {
  Child child([] {
    must(::epoll_create1(0) == 3);
    for (uint64_t i = 0; i < 3; i++) {
      must(::eventfd(static_cast<unsigned>(i), 0) == 4);
      add(3, 4, EPOLLIN, i);
      must(::dup2(4, static_cast<int>(10 + i)) >= 0 && ::close(4) == 0);
    }
  });
  const Captured captured = capture(child);
  ASSERT_EQ(captured.file(3).epoll().items_size(), 3);
  for (const pb::EpollItem& item : captured.file(3).epoll().items()) {
    EXPECT_EQ(item.fd(), 4);
    EXPECT_EQ(item.file(), captured.file(static_cast<int>(10 + item.data())).id());
  }
  Restored restored(captured);
  EXPECT_EQ(items(restored.fd(3)).size(), 3u);
}

TEST(Pidfd, OfARelativeIsKeptOthersAreRefused) {
  const pid_t outside = ::getpid();
  Child child([&] {
    const pid_t grandchild = ::fork();
    if (grandchild == 0) ::pause();
    must(::syscall(SYS_pidfd_open, grandchild, 0) == 3);
  });
  const Captured captured = capture(child);
  EXPECT_EQ(captured.file(3).pidfd().pid(), captured.capsule.processes(1).pid());
  Restored restored(captured);
  EXPECT_EQ(restored.fd(3), -1) << "made in the process";
  Child other([&] { must(::syscall(SYS_pidfd_open, outside, 0) == 3); });
  EXPECT_THAT(error_of(ErrorKind::kRefused, [&] { capture(other); }), HasSubstr(std::to_string(outside)));
}

}  // namespace
}  // namespace icp::test
