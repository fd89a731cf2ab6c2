// SPDX-License-Identifier: GPL-2.0-or-later
// What a version and a restart cost for many threads, processes, sockets and mappings, in system calls of the agent: so
// many for each, and not more for each the more there are.
#include <fcntl.h>
#include <linux/perf_event.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <memory>

#include "engine/base/error.h"
#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

constexpr uid_t kNobody = 65534;

// System calls of the calling thread, and of threads it starts, but those of which the number depends on how long
// something takes. Not available where events of the kernel cannot be counted.
class CallCount {
 public:
  CallCount() {
    uint64_t id = 0;
    if (!(std::ifstream("/sys/kernel/tracing/events/raw_syscalls/sys_enter/id") >> id) &&
        !(std::ifstream("/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id") >> id))
      return;
    perf_event_attr attributes{};
    attributes.type = PERF_TYPE_TRACEPOINT;
    attributes.size = sizeof attributes;
    attributes.config = id;
    attributes.inherit = attributes.inherit_thread = 1;
    fd_.reset(static_cast<int>(::syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC)));
    const std::string filter =
        fmt::format("id != {} && id != {} && id != {}", SYS_sched_yield, SYS_wait4, SYS_clock_nanosleep);
    if (fd_ && ::ioctl(fd_.get(), PERF_EVENT_IOC_SET_FILTER, filter.c_str()) != 0) fd_.reset();
  }
  bool available() const { return static_cast<bool>(fd_); }
  uint64_t so_far() const {
    uint64_t count = 0;
    EXPECT_EQ(::read(fd_.get(), &count, sizeof count), static_cast<ssize_t>(sizeof count));
    return count;
  }

 private:
  UniqueFd fd_;
};

using Make = void (*)(int number);

struct Kind {
  const char* name;
  Make make;
  uint64_t most_stopped, most_restart;  // calls for each
};

// A process with so many of a kind, which does nothing more.
class Owner {
 public:
  Owner(Make make, int number) {
    int ready[2];
    if (::pipe2(ready, O_CLOEXEC) != 0) throw_errno("pipe");
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::setsid();
      const int null = ::open("/dev/null", O_RDWR);
      for (int fd = 0; fd <= 2; ++fd) ::dup2(null, fd);
      for (int fd = 3; fd < 1024; ++fd)
        if (fd != ready[1]) ::close(fd);
      const rlimit files{1 << 16, 1 << 16};
      ::setrlimit(RLIMIT_NOFILE, &files);
      if (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0 || ::chdir("/") != 0) ::_exit(1);
      make(number);
      if (::write(ready[1], "r", 1) != 1) ::_exit(1);
      ::close(ready[1]);
      for (;;) ::pause();
    }
    ::close(ready[1]);
    char byte;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    ::close(ready[0]);
    ::usleep(50'000);  // it sleeps now, and so do its children
  }
  ~Owner() {
    ::kill(-pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = 0;
};

struct Calls {
  uint64_t stopped = 0, restart = 0;
};

Calls calls_for(const Kind& kind, int number) {
  const Owner owner(kind.make, number);
  const TempDir directory;
  EXPECT_EQ(::chown(directory.path().c_str(), kNobody, kNobody), 0);
  SessionConfig config;
  config.image_path = directory.path() + "/image";
  config.identity = {kNobody, kNobody, {}};
  config.node = "here";
  Session session(config, {{owner.pid(), 0}});
  session.checkpoint();
  RestoreOptions restore;
  restore.image_path = config.image_path;
  restore.identity = config.identity;
  restore.init_path = ICP_INIT_PATH;
  CallCount count;
  Calls calls{UINT64_MAX, UINT64_MAX};
  // Where a wait takes long, somebody has a look meanwhile: the least of several is what it takes.
  for (int tries = 0; tries < 4; ++tries) {
    CheckpointOptions options;
    uint64_t before = 0;
    options.gate = [&](CheckpointOptions::Phase phase) {
      if (phase == CheckpointOptions::Phase::kPrepared) before = count.so_far();
      if (phase == CheckpointOptions::Phase::kCollected)
        calls.stopped = std::min(calls.stopped, count.so_far() - before);
    };
    session.checkpoint(options);
    before = count.so_far();
    RestoredCapsule::rehearse(restore);
    calls.restart = std::min(calls.restart, count.so_far() - before);
  }
  return calls;
}

void make_threads(int number) {
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstacksize(&attributes, 64 << 10);
  const auto sleep = [](void*) -> void* {
    for (;;) ::pause();
  };
  for (int i = 0; i < number; ++i) {
    pthread_t thread;
    CHECK_OR_DIE(::pthread_create(&thread, &attributes, sleep, nullptr) == 0);
  }
}

void make_children(int number) {
  for (int i = 0; i < number; ++i) {
    const pid_t pid = ::fork();
    CHECK_OR_DIE(pid >= 0);
    if (pid > 0) continue;
    ::close(3), ::close(4);
    for (;;) ::pause();
  }
}

void make_unix_sockets(int number) {
  int ends[2];
  for (int i = 0; i < number; i += 2) CHECK_OR_DIE(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
}

void make_ended_unix_sockets(int number) {
  int ends[2];
  for (int i = 0; i < number; ++i)
    CHECK_OR_DIE(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && ::close(ends[1]) == 0);
}

void make_udp_sockets(int number) {
  for (int i = 0; i < number; ++i) CHECK_OR_DIE(::socket(AF_INET, SOCK_DGRAM, 0) >= 0);
}

void make_pipes(int number) {
  int ends[2];
  for (int i = 0; i < number; ++i) CHECK_OR_DIE(::pipe(ends) == 0);
}

void make_mappings(int number) {
  constexpr size_t kPage = 4096;
  char* const memory = static_cast<char*>(::mmap(nullptr, kPage * 2 * static_cast<size_t>(number),
                                                 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK_OR_DIE(memory != MAP_FAILED);
  for (size_t i = 0; i < static_cast<size_t>(number); ++i)
    CHECK_OR_DIE(::mprotect(memory + 2 * i * kPage, kPage, PROT_READ) == 0);
}

class ManyItems : public testing::TestWithParam<Kind> {};

TEST_P(ManyItems, CostTheSameEach) {
  if (::geteuid() != 0) GTEST_SKIP() << "counting system calls takes root";
  if (!CallCount().available()) GTEST_SKIP() << "this host does not let system calls be counted";
  constexpr int kNumber = 40;
  const Kind& kind = GetParam();
  const Calls once = calls_for(kind, kNumber), twice = calls_for(kind, 2 * kNumber),
              more = calls_for(kind, 4 * kNumber);
  const auto check = [&](const char* what, uint64_t Calls::*calls, uint64_t most) {
    const auto first = static_cast<double>(twice.*calls) - static_cast<double>(once.*calls);
    const auto second = static_cast<double>(more.*calls) - static_cast<double>(twice.*calls);
    // The same for each: twice as many for twice as many more; with the square of the number it is four times. Waits
    // for processes look more often on a busy machine.
    EXPECT_LE(second, 3 * std::max(first, 0.0) + 12 * kNumber) << what;
    EXPECT_LE(second / (2 * kNumber), static_cast<double>(most)) << "calls for each, " << what;
  };
  check("stopped", &Calls::stopped, kind.most_stopped);
  check("at a restart", &Calls::restart, kind.most_restart);
}

INSTANTIATE_TEST_SUITE_P(, ManyItems,
                         testing::Values(Kind{"threads", make_threads, 60, 110},
                                         Kind{"children", make_children, 600, 2500},
                                         Kind{"unix_sockets", make_unix_sockets, 70, 60},
                                         Kind{"ended_unix_sockets", make_ended_unix_sockets, 70, 60},
                                         Kind{"udp_sockets", make_udp_sockets, 97, 80},
                                         Kind{"pipes", make_pipes, 40, 80}, Kind{"mappings", make_mappings, 10, 15}),
                         [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace icp::test
