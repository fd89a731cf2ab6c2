// SPDX-License-Identifier: GPL-2.0-or-later
// States that few programs are in, one row each: made, checkpointed, killed, restored, looked at.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <mqueue.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "tests/engine/roundtrip.h"
#include "tests/engine/tcp_peer.h"

namespace icp::test {
namespace {

struct State {
  const char* name;
  Body body;
  RoundtripOptions options;
};

// Memory that the process shares with its children, and keeps.
template <typename T>
T* shared() {
  void* const at = ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK_OR_DIE(at != MAP_FAILED);
  return static_cast<T*>(at);
}

// A child that does `work` when told to, and ends with what that returns.
class Child {
 public:
  explicit Child(const std::function<int()>& work) {
    int ends[2];
    CHECK_OR_DIE(::pipe(ends) == 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      char byte = 0;
      ::close(ends[1]);
      static_cast<void>(!::read(ends[0], &byte, 1));
      ::_exit(work());
    }
    ::close(ends[0]);
    tell_ = ends[1];
  }
  int end() const {
    int status = 0;
    ::close(tell_);
    CHECK_OR_DIE(::waitpid(pid_, &status, 0) == pid_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = 0;
  int tell_ = -1;
};

// ---- signals, timers, stops --------------------------------------------------------------------------------------

// The kernel keeps one signal a timer: there is no second one after a restart.
int timer_that_has_expired(Gate& gate) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN;
  event.sigev_value.sival_int = 4711;
  timer_t timer{};
  const itimerspec time{{100, 0}, {0, 1'000'000}};
  CHECK_OR_DIE(::timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && ::timer_settime(timer, 0, &time, nullptr) == 0);
  ::usleep(20'000);
  gate.ready_and_go();
  const timespec none{};
  siginfo_t info{};
  CHECK_OR_DIE(::sigtimedwait(&set, &info, &none) == SIGRTMIN && info.si_code == SI_TIMER);
  CHECK_OR_DIE(info.si_value.sival_int == 4711 && info.si_overrun == 0);
  CHECK_OR_DIE(::sigtimedwait(&set, &info, &none) < 0 && errno == EAGAIN);
  itimerspec left{};
  CHECK_OR_DIE(::timer_gettime(timer, &left) == 0 && left.it_interval.tv_sec == 100);
  CHECK_OR_DIE(left.it_value.tv_sec > 50 && left.it_value.tv_sec < 100);
  return 0;
}

// What timer_getoverrun() says until the next signal is taken; the timer goes on in step.
int timer_that_has_overrun(Gate& gate) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  timer_t timers[2];
  const timespec none{};
  siginfo_t info{};
  for (int i = 0; i < 2; ++i) {
    sigevent event{};
    event.sigev_notify = i == 0 ? SIGEV_SIGNAL : SIGEV_THREAD_ID;
    event.sigev_signo = SIGRTMIN;
    event._sigev_un._tid = ::gettid();
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    const itimerspec time{{100, 0}, {now.tv_sec - 530 - i * 100, 0}};  // five times, and six
    CHECK_OR_DIE(::timer_create(CLOCK_REALTIME, &event, &timers[i]) == 0);
    CHECK_OR_DIE(::timer_settime(timers[i], TIMER_ABSTIME, &time, nullptr) == 0);
    const timespec longest{5, 0};
    CHECK_OR_DIE(::sigtimedwait(&set, &info, &longest) == SIGRTMIN && info.si_overrun == 5 + i);
  }
  gate.ready_and_go();
  for (int i = 0; i < 2; ++i) {
    CHECK_OR_DIE(::timer_getoverrun(timers[i]) == 5 + i);
    itimerspec left{};
    CHECK_OR_DIE(::timer_gettime(timers[i], &left) == 0 && left.it_interval.tv_sec == 100);
    CHECK_OR_DIE(left.it_value.tv_sec > 40 && left.it_value.tv_sec < 70);
  }
  CHECK_OR_DIE(::sigtimedwait(&set, &info, &none) < 0 && errno == EAGAIN);
  return 0;
}

// In a group that is not orphaned, where such a stop is no SIGSTOP.
int stop_as_by_a_terminal(Gate& gate) {
  const Child group([] { return 0; });  // keeps a member's parent in the session
  ::setpgid(0, 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::setpgid(0, 0);
    for (;;) ::pause();
  }
  ::setpgid(child, child);
  CHECK_OR_DIE(::kill(child, SIGTTIN) == 0);
  siginfo_t info{};
  CHECK_OR_DIE(::waitid(P_PID, static_cast<id_t>(child), &info, WSTOPPED | WNOWAIT) == 0 && info.si_status == SIGTTIN);
  gate.ready_and_go();
  info = {};
  CHECK_OR_DIE(::waitid(P_PID, static_cast<id_t>(child), &info, WSTOPPED) == 0);
  CHECK_OR_DIE(info.si_pid == child && info.si_status == SIGTTIN);
  ::kill(child, SIGKILL);
  CHECK_OR_DIE(::waitpid(child, nullptr, 0) == child);
  return group.end();
}

// The leader of its session has ended, too.
int child_of_a_subreaper(Gate& gate) {
  CHECK_OR_DIE(::prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  auto* const child = shared<std::atomic<pid_t>>();
  auto* const go = shared<std::atomic<bool>>();
  const pid_t leader = ::fork();
  if (leader == 0) {
    ::setsid();
    if (const pid_t orphan = ::fork(); orphan != 0) {
      *child = orphan;
      ::_exit(0);
    }
    const pid_t session = ::getsid(0), group = ::getpgid(0);
    while (!*go) ::usleep(1000);
    ::_exit(::getsid(0) == session && ::getpgid(0) == group ? 7 : 8);
  }
  int status = 0;
  CHECK_OR_DIE(::waitpid(leader, nullptr, 0) == leader);
  CHECK_OR_DIE(::waitpid(*child, nullptr, WNOHANG) == 0 && ::getsid(*child) == leader);
  gate.ready_and_go();
  CHECK_OR_DIE(::getsid(*child) == leader && ::getpgid(*child) == leader);
  *go = true;
  CHECK_OR_DIE(::waitpid(-1, &status, 0) == *child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
  CHECK_OR_DIE(::wait(nullptr) < 0 && errno == ECHILD);
  return 0;
}

std::atomic<int> children_heard;

// Nobody is told anew what has been told, nor of a stop that is over.
int continued_and_not_waited_for(Gate& gate) {
  struct sigaction action {};
  action.sa_handler = [](int) { ++children_heard; };
  action.sa_flags = SA_RESTART;
  CHECK_OR_DIE(::sigaction(SIGCHLD, &action, nullptr) == 0);
  pid_t children[3];
  for (pid_t& child : children) {
    const bool threads = &child == &children[1];
    if ((child = ::fork()) == 0) {
      if (threads)
        std::thread([] {
          for (;;) ::pause();
        }).detach();
      for (;;) ::pause();
    }
    siginfo_t info{};
    ::usleep(50'000);
    CHECK_OR_DIE(::kill(child, SIGSTOP) == 0);
    CHECK_OR_DIE(::waitid(P_PID, static_cast<id_t>(child), &info, WSTOPPED) == 0 && info.si_pid == child);
    CHECK_OR_DIE(::kill(child, SIGCONT) == 0);
    CHECK_OR_DIE(::waitid(P_PID, static_cast<id_t>(child), &info, WCONTINUED | WNOWAIT) == 0);
  }
  CHECK_OR_DIE(::waitpid(children[2], nullptr, WCONTINUED) == children[2]);
  ::usleep(50'000);
  const int heard = children_heard;
  gate.ready_and_go();
  CHECK_OR_DIE(children_heard == heard);
  for (const pid_t child : children) {
    siginfo_t info{};
    CHECK_OR_DIE(::waitid(P_PID, static_cast<id_t>(child), &info, WSTOPPED | WNOHANG) == 0 && info.si_pid == 0);
    CHECK_OR_DIE(::waitid(P_PID, static_cast<id_t>(child), &info, WCONTINUED | WNOHANG) == 0);
    CHECK_OR_DIE(child == children[2] ? info.si_pid == 0 : info.si_pid == child && info.si_code == CLD_CONTINUED);
    info = {};
    CHECK_OR_DIE(::waitid(P_PID, static_cast<id_t>(child), &info, WCONTINUED | WNOHANG) == 0 && info.si_pid == 0);
    ::kill(child, SIGKILL);
    CHECK_OR_DIE(::waitpid(child, nullptr, 0) == child);
  }
  return 0;
}

// ---- sockets -----------------------------------------------------------------------------------------------------

// What does not fit in before does not after, whatever it was filled with.
int full_streams(Gate& gate) {
  static char bytes[65536], got[65536];
  constexpr size_t kSizes[] = {1, 700, 5000, 65536};
  int ends[4][2];
  size_t sums[4] = {};
  for (int i = 0; i < 4; ++i) {
    CHECK_OR_DIE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends[i]) == 0);
    for (ssize_t sent = 0; (sent = ::send(ends[i][0], bytes, kSizes[i], 0)) > 0;) sums[i] += static_cast<size_t>(sent);
  }
  gate.ready_and_go();
  for (int i = 0; i < 4; ++i) {
    CHECK_OR_DIE(::send(ends[i][0], bytes, 1, 0) < 0 && errno == EAGAIN);
    size_t sum = 0;
    for (ssize_t read = 0; (read = ::recv(ends[i][1], got, sizeof got, 0)) > 0;) sum += static_cast<size_t>(read);
    CHECK_OR_DIE(sum == sums[i] && ::send(ends[i][0], bytes, kSizes[i], 0) > 0);
  }
  return 0;
}

// ---- threads, processes ------------------------------------------------------------------------------------------

int settings_of_threads(Gate& gate) {
  std::atomic<int> step = 0, wrong = 0;
  const auto thread = [&](int signal, int policy, int nice) {
    const auto tid = static_cast<id_t>(::gettid());
    const sched_param priority{};
    ::prctl(PR_SET_PDEATHSIG, signal);
    CHECK_OR_DIE(::setpriority(PRIO_PROCESS, tid, nice) == 0 && ::sched_setscheduler(0, policy, &priority) == 0);
    step++;
    while (step < 3) ::usleep(1000);
    int now = 0;
    ::prctl(PR_GET_PDEATHSIG, &now);
    if (now != signal || ::getpriority(PRIO_PROCESS, tid) != nice || ::sched_getscheduler(0) != policy) wrong++;
  };
  std::thread one(thread, SIGUSR1, SCHED_IDLE, 7), other(thread, SIGUSR2, SCHED_BATCH, 3);
  while (step < 2) ::usleep(1000);
  gate.ready_and_go();
  step = 3;
  one.join();
  other.join();
  int own = 0;
  ::prctl(PR_GET_PDEATHSIG, &own);
  CHECK_OR_DIE(wrong == 0 && own == 0);
  return 0;
}

int child_without_an_exit_signal(Gate& gate) {
  int ends[2];
  CHECK_OR_DIE(::pipe(ends) == 0);
  const auto child = static_cast<pid_t>(::syscall(SYS_clone, 0, nullptr, nullptr, nullptr, nullptr));
  if (child == 0) {
    char byte = 0;
    ::close(ends[1]);
    static_cast<void>(!::read(ends[0], &byte, 1));
    ::_exit(5);
  }
  gate.ready_and_go();
  ::close(ends[1]);
  int status = 0;
  CHECK_OR_DIE(::waitpid(child, &status, __WCLONE) == child && WEXITSTATUS(status) == 5);
  return 0;
}

int removed_directory_of_several(Gate& gate) {
  const TempDir directory;
  const std::string path = directory.path() + "/gone";
  CHECK_OR_DIE(::mkdir(path.c_str(), 0711) == 0);
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY);
  CHECK_OR_DIE(fd >= 0 && ::chdir(path.c_str()) == 0 && ::rmdir(path.c_str()) == 0);
  auto* const of_child = shared<struct stat>();
  const Child child([=] {
    ::close(fd);
    return ::stat(".", of_child);
  });
  gate.ready_and_go();
  struct stat open {
  }, own{};
  CHECK_OR_DIE(child.end() == 0 && ::fstat(fd, &open) == 0 && ::stat(".", &own) == 0);
  CHECK_OR_DIE(open.st_ino == own.st_ino && open.st_ino == of_child->st_ino && (own.st_mode & 07777) == 0711);
  return ::chdir("/");
}

int pidfds_of_one_ended_process(Gate& gate) {
  const pid_t ended = ::fork();
  if (ended == 0) ::_exit(0);
  const auto open = [ended] { return static_cast<int>(::syscall(SYS_pidfd_open, ended, 0)); };
  const int own = open(), again = open(), for_child = open();
  struct stat before[2]{};
  CHECK_OR_DIE(::fstat(own, &before[0]) == 0 && ::fstat(again, &before[1]) == 0 &&
               before[0].st_ino == before[1].st_ino);
  auto* const seen = shared<struct stat>();
  const Child child([=] { return ::fstat(for_child, seen); });
  ::close(for_child);
  CHECK_OR_DIE(::waitpid(ended, nullptr, 0) == ended);
  gate.ready_and_go();
  struct stat one {
  }, other{};
  CHECK_OR_DIE(child.end() == 0 && ::fstat(own, &one) == 0 && ::fstat(again, &other) == 0);
  CHECK_OR_DIE(one.st_ino == other.st_ino && one.st_ino == seen->st_ino);
  return 0;
}

// ---- sockets -----------------------------------------------------------------------------------------------------

int member_of_multicast_groups(Gate& gate) {
  const int socket = ::socket(AF_INET, SOCK_DGRAM, 0), socket6 = ::socket(AF_INET6, SOCK_DGRAM, 0);
  bind_to(socket, loopback(AF_INET, 0));
  const auto lo = static_cast<int>(::if_nametoindex("lo"));
  ip_mreqn group{};
  group.imr_ifindex = lo;
  group.imr_multiaddr.s_addr = ::inet_addr("239.1.2.3");
  ip_mreq_source source{};
  source.imr_multiaddr.s_addr = ::inet_addr("232.1.2.4");
  source.imr_interface.s_addr = source.imr_sourceaddr.s_addr = htonl(INADDR_LOOPBACK);
  ipv6_mreq group6{};
  group6.ipv6mr_interface = static_cast<unsigned>(lo);
  ::inet_pton(AF_INET6, "ff15::1:2", &group6.ipv6mr_multiaddr);
  CHECK_OR_DIE(::setsockopt(socket, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) == 0);
  CHECK_OR_DIE(::setsockopt(socket, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &source, sizeof source) == 0);
  CHECK_OR_DIE(::setsockopt(socket6, IPPROTO_IPV6, IPV6_JOIN_GROUP, &group6, sizeof group6) == 0);
  gate.ready_and_go();
  CHECK_OR_DIE(::setsockopt(socket, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group) == 0);
  CHECK_OR_DIE(::setsockopt(socket, IPPROTO_IP, IP_DROP_SOURCE_MEMBERSHIP, &source, sizeof source) == 0);
  CHECK_OR_DIE(::setsockopt(socket6, IPPROTO_IPV6, IPV6_LEAVE_GROUP, &group6, sizeof group6) == 0);
  return 0;
}

// Bound to an IPv6 address they take no IPv4 connection, not even one that stands for a closed one.
int closed_connection_of_ipv6(Gate& gate) {
  const int listener = ::socket(AF_INET6, SOCK_STREAM, 0), client = ::socket(AF_INET6, SOCK_STREAM, 0);
  bind_to(listener, loopback(AF_INET6, 0));
  const sockaddr_storage name = name_of(listener);
  CHECK_OR_DIE(::listen(listener, 1) == 0);
  CHECK_OR_DIE(::connect(client, reinterpret_cast<const sockaddr*>(&name), sizeof(sockaddr_in6)) == 0);
  const int accepted = ::accept(listener, nullptr, nullptr);
  CHECK_OR_DIE(accepted >= 0 && ::send(client, "bye", 3, 0) == 3 && ::close(client) == 0);
  ::usleep(20'000);
  gate.ready_and_go();
  char text[8];
  CHECK_OR_DIE(::recv(accepted, text, sizeof text, 0) == 3 && ::recv(accepted, text, sizeof text, 0) == 0);
  return 0;
}

// ---- POSIX message queues ----------------------------------------------------------------------------------------

mqd_t make_queue(const std::string& name) {
  mq_attr size{};
  size.mq_maxmsg = 4;
  size.mq_msgsize = 16;
  const mqd_t queue = ::mq_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0640, &size);
  CHECK_OR_DIE(queue >= 0);
  return queue;
}

int message_queues(Gate& gate) {
  const std::string name = "/icp-test-" + std::to_string(::getpid());
  const mqd_t queue = make_queue(name), reader = ::mq_open(name.c_str(), O_RDONLY);
  const mqd_t removed = make_queue(name + "-removed");
  CHECK_OR_DIE(reader >= 0 && ::mq_unlink((name + "-removed").c_str()) == 0 && ::mq_send(removed, "r", 1, 2) == 0);
  CHECK_OR_DIE(::mq_send(queue, "low", 3, 1) == 0 && ::mq_send(queue, "high", 4, 9) == 0 &&
               ::mq_send(queue, "lower", 5, 1) == 0);
  const Child child([=] { return ::mq_send(queue, "child", 5, 0); });
  gate.ready_and_go();
  CHECK_OR_DIE(child.end() == 0);
  char text[16];
  unsigned priority = 0;
  for (const auto& [message, expected] : {std::pair("high", 9u), {"low", 1u}, {"lower", 1u}, {"child", 0u}}) {
    const ssize_t got = ::mq_receive(reader, text, sizeof text, &priority);
    CHECK_OR_DIE(got > 0 && std::string(text, static_cast<size_t>(got)) == message && priority == expected);
  }
  CHECK_OR_DIE(::mq_receive(queue, text, sizeof text, nullptr) < 0 && errno == EAGAIN);
  CHECK_OR_DIE(::mq_receive(removed, text, sizeof text, &priority) == 1 && priority == 2);
  const mqd_t again = ::mq_open(name.c_str(), O_WRONLY);
  CHECK_OR_DIE(again >= 0 && ::mq_unlink(name.c_str()) == 0);
  return 0;
}

int notified_of_messages(Gate& gate) {
  const std::string name = "/icp-test-" + std::to_string(::getpid());
  const mqd_t queue = make_queue(name);
  sigevent event{};
  event.sigev_notify = SIGEV_NONE;
  CHECK_OR_DIE(::mq_notify(queue, &event) == 0 && ::mq_unlink(name.c_str()) == 0);
  gate.ready_and_go();
  return 0;
}

// ---- refused -----------------------------------------------------------------------------------------------------

int segments_of_its_own(Gate& gate) {
  struct {
    unsigned number, base, limit, bits;
  } segment{3, 0x10000, 0xfffff, 0x51};
  if (::syscall(SYS_modify_ldt, 1, &segment, sizeof segment) != 0) ::_exit(77);  // a kernel without them
  gate.ready_and_go();
  return 0;
}

int directory_that_signals(Gate& gate) {
  const int fd = ::open("/tmp", O_RDONLY | O_DIRECTORY);
  ::signal(SIGIO, SIG_IGN);
  if (::fcntl(fd, F_NOTIFY, DN_CREATE | DN_MULTISHOT) != 0) ::_exit(77);
  gate.ready_and_go();
  return 0;
}

int mark_of_urgent_data(Gate& gate) {
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0), client = ::socket(AF_INET, SOCK_STREAM, 0);
  bind_to(listener, loopback(AF_INET, 0));
  const sockaddr_storage name = name_of(listener);
  CHECK_OR_DIE(::listen(listener, 1) == 0);
  CHECK_OR_DIE(::connect(client, reinterpret_cast<const sockaddr*>(&name), sizeof(sockaddr_in)) == 0);
  const int accepted = ::accept(listener, nullptr, nullptr);
  char text[8];
  CHECK_OR_DIE(::send(client, "ab", 2, 0) == 2 && ::send(client, "!", 1, MSG_OOB) == 1 &&
               ::send(client, "cd", 2, 0) == 2);
  ::usleep(20'000);
  CHECK_OR_DIE(::recv(accepted, text, 1, MSG_OOB) == 1);
  gate.ready_and_go();
  CHECK_OR_DIE(::recv(accepted, text, sizeof text, 0) == 2 && ::recv(accepted, text, sizeof text, 0) == 2);
  return 0;
}

class StatesRoundtrip : public ::testing::TestWithParam<State> {
 protected:
  void SetUp() override {
    if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
  }
};

TEST_P(StatesRoundtrip, ComesBack) { EXPECT_EQ(roundtrip(GetParam().body, GetParam().options), 0); }

INSTANTIATE_TEST_SUITE_P(
    All, StatesRoundtrip,
    ::testing::Values(
        State{"TimerThatHasExpired", timer_that_has_expired, {.generations = 2}},
        // It stops a moment after it has been let go.
        State{"TimerThatHasOverrun", timer_that_has_overrun, {.generations = 2}},
        State{"FullStreams", full_streams, {.generations = 2}},
        State{"ChildOfASubreaper", child_of_a_subreaper, {.generations = 2}},
        State{"ContinuedAndNotWaitedFor", continued_and_not_waited_for, {.generations = 2, .same_view = false}},
        State{"StopAsByATerminal", stop_as_by_a_terminal, {.generations = 2, .same_view = false}},
        State{"SettingsOfThreads", settings_of_threads, {.generations = 2}},
        State{"ChildWithoutAnExitSignal", child_without_an_exit_signal, {.generations = 2}},
        State{"RemovedDirectoryOfSeveral", removed_directory_of_several, {.generations = 2}},
        State{"PidfdsOfOneEndedProcess", pidfds_of_one_ended_process, {.generations = 2}},
        State{"MemberOfMulticastGroups", member_of_multicast_groups, {.generations = 2}},
        State{"ClosedConnectionOfIPv6", closed_connection_of_ipv6, {.generations = 2}},
        State{"MessageQueues", message_queues, {.generations = 2, .versions = 2}},
        State{"NotifiedOfMessages", notified_of_messages, {.expect_refused = true}},
        State{"SegmentsOfItsOwn", segments_of_its_own, {.expect_refused = true}},
        State{"DirectoryThatSignals", directory_that_signals, {.expect_refused = true}},
        State{"MarkOfUrgentData", mark_of_urgent_data, {.expect_refused = true}}),
    [](const auto& row) { return std::string(row.param.name); });

// ---- control groups ----------------------------------------------------------------------------------------------

bool is_in_group(const char* file, const std::string& group) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);)
    if (line.ends_with(":name=icp-test:" + group)) return true;
  return false;
}

void join_group(const std::string& directory, const char* file) { std::ofstream(directory + "/" + file) << ::gettid(); }

// A hierarchy without controllers, as anybody may make one who is root; its groups may be gone at the restart.
TEST(ControlGroupsRoundtrip, ProcessAndThreadInGroupsOfTheirOwn) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  const TempDir directory;
  const std::string top = directory.path() + "/groups";
  ASSERT_EQ(::mkdir(top.c_str(), 0755), 0);
  if (::mount("none", top.c_str(), "cgroup", 0, "none,name=icp-test") != 0) GTEST_SKIP() << "no control groups here";
  const std::string one = top + "/one", other = one + "/other";
  const auto remove = [&] {
    for (const std::string& group : {other, one})
      for (int tries = 0; ::rmdir(group.c_str()) != 0 && errno == EBUSY && tries < 500; ++tries) ::usleep(10'000);
  };
  const Body body = [&](Gate& gate) {
    CHECK_OR_DIE(::mkdir(one.c_str(), 0750) == 0 && ::mkdir(other.c_str(), 0755) == 0);
    std::ofstream(one + "/notify_on_release") << "1";
    CHECK_OR_DIE(::chmod((one + "/notify_on_release").c_str(), 0640) == 0);
    CHECK_OR_DIE(::chmod((one + "/tasks").c_str(), 0600) == 0 && ::chown((one + "/tasks").c_str(), 65534, 65533) == 0);
    join_group(one, "cgroup.procs");
    std::atomic<int> step = 0;
    bool found = false;
    std::thread thread([&] {
      join_group(other, "tasks");
      step = 1;
      while (step < 2) ::usleep(1000);
      found = is_in_group("/proc/thread-self/cgroup", "/one/other");
    });
    while (step < 1) ::usleep(1000);
    gate.ready_and_go();
    step = 2;
    thread.join();
    std::string value;
    std::ifstream(one + "/notify_on_release") >> value;
    struct stat status {};
    CHECK_OR_DIE(found && is_in_group("/proc/self/cgroup", "/one") && value == "1");
    CHECK_OR_DIE(::stat(one.c_str(), &status) == 0 && (status.st_mode & 0777) == 0750);
    CHECK_OR_DIE(::stat((one + "/notify_on_release").c_str(), &status) == 0 && (status.st_mode & 0777) == 0640);
    CHECK_OR_DIE(::stat((one + "/tasks").c_str(), &status) == 0 && (status.st_mode & 0777) == 0600);
    CHECK_OR_DIE(status.st_uid == 65534 && status.st_gid == 65533);
    CHECK_OR_DIE(::stat((one + "/cgroup.procs").c_str(), &status) == 0 && (status.st_mode & 0777) == 0644);
    CHECK_OR_DIE(status.st_uid == 0);
    return 0;
  };
  bool first = true;
  RoundtripOptions options{.generations = 2, .as_root = true};
  options.restore = [&](RestoreOptions&) {
    if (!first) remove();
    first = false;
  };
  EXPECT_EQ(roundtrip(body, options), 0);
  remove();
  ::umount2(top.c_str(), MNT_DETACH);
}

}  // namespace
}  // namespace icp::test
