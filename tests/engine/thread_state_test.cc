// SPDX-License-Identifier: GPL-2.0-or-later
// What a thread has of its own: it comes back, or is refused by name, and nothing of it is harmed.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "engine/base/error.h"
#include "engine/process/stopped_tree.h"
#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

// A process whose second thread makes some state of its own, and then answers each byte.
class Program {
 public:
  explicit Program(const std::function<void()>& state) {
    int to[2], from[2];
    if (::pipe(to) != 0 || ::pipe(from) != 0) throw_errno("pipe");
    pid_ = ::fork();
    if (pid_ == 0) run(state, to[0], from[1]);
    ::close(to[0]);
    ::close(from[1]);
    to_ = to[1];
    from_ = from[0];
    if (!answers()) throw_error(ErrorKind::kSystem, "the program under test did not get ready");
  }
  ~Program() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::close(to_);
    ::close(from_);
  }
  pid_t pid() const { return pid_; }
  bool answers() const {
    char byte = 'x';
    return ::write(to_, &byte, 1) == 1 && ::read(from_, &byte, 1) == 1;
  }
  std::string refusal() const {
    std::string text;
    for (const Finding& finding : check_tree({pid_}, {})) text += to_sentence(finding) + "\n";
    return text;
  }

 private:
  [[noreturn]] static void run(const std::function<void()>& state, int in, int out) {
    std::thread([&] {
      state();
      char byte;
      while (::syscall(SYS_read, in, &byte, 1) == 1 && ::syscall(SYS_write, out, &byte, 1) == 1) {
      }
    }).join();
    ::_exit(0);
  }
  pid_t pid_ = 0;
  int to_ = -1, from_ = -1;
};

void expect_refused(const std::function<void()>& state, const std::string& sentence) {
  if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
  const Program program(state);
  EXPECT_NE(program.refusal().find(sentence), std::string::npos) << program.refusal();
  EXPECT_TRUE(program.answers());
}

void install_filter(uint32_t otherwise) {
  sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 2, 0),
                        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 1, 0), BPF_STMT(BPF_RET | BPF_K, otherwise),
                        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{5, code};
  CHECK_OR_DIE(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  CHECK_OR_DIE(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
}

// Who cannot read filters, or put them aside, is not root.
void expect_refused_without_root(const std::function<void()>& state, const std::string& sentence) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may";
  expect_refused(state, sentence);
}

TEST(ThreadState, StrictMode) {
  expect_refused_without_root([] { CHECK_OR_DIE(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0); },
                              "seccomp's strict mode");
}

TEST(ThreadState, Filter) {
  expect_refused_without_root([] { install_filter(SECCOMP_RET_KILL_PROCESS); }, "has a seccomp filter");
}

// Its threads have one list of filters, so that a further one can be put into all of them (SECCOMP_FILTER_FLAG_TSYNC).
TEST(ThreadState, AFilterThatAllThreadsHave) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root sees what a filter does";
  const auto body = [](Gate& gate) {
    install_filter(SECCOMP_RET_ALLOW);
    std::atomic<bool> look{false};
    std::atomic<int> answer{-1};
    std::thread other([&] {
      while (!look) ::usleep(1000);
      answer = ::syscall(SYS_getppid) < 0 ? errno : 0;
    });
    gate.ready_and_go();
    sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
                          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
                          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    const sock_fprog program{4, code};
    CHECK_OR_DIE(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
    look = true;
    other.join();
    CHECK_OR_DIE(answer == EXDEV);
    return 0;
  };
  for (const bool as_root : {true, false}) EXPECT_EQ(roundtrip(body, {.generations = 2, .as_root = as_root}), 0);
}

TEST(ThreadState, SupervisedFilter) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root sees what a filter does";
  expect_refused([] { install_filter(SECCOMP_RET_USER_NOTIF); }, "has a seccomp filter that asks a supervisor");
}

TEST(ThreadState, DescriptorTable) {
  expect_refused([] { CHECK_OR_DIE(::unshare(CLONE_FILES) == 0); }, "has a descriptor table of its own");
}

TEST(ThreadState, NetworkNamespaceInUse) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root's threads get there";
  expect_refused(
      [] {
        CHECK_OR_DIE(::unshare(CLONE_NEWNET) == 0);
        const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
        sockaddr_un name{};
        name.sun_family = AF_UNIX;
        CHECK_OR_DIE(::bind(socket, reinterpret_cast<sockaddr*>(&name), sizeof(sa_family_t)) == 0);
      },
      "is in another net namespace, which is in use");
}

TEST(ThreadState, MountNamespaceWithMounts) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root's threads get there";
  expect_refused(
      [] {
        CHECK_OR_DIE(::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
      },
      "is in another mnt namespace, with mounts of its own");
}

TEST(ThreadState, HostNameNamespace) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root's threads get there";
  expect_refused([] { CHECK_OR_DIE(::unshare(CLONE_NEWUTS) == 0); }, "is in another uts namespace");
}

// A thread that makes some state, and looks for it after the restart.
class Other {
 public:
  Other(const std::function<void()>& make, std::function<bool()> check)
      : thread_([this, make, check = std::move(check)] {
          make();
          made_ = true;
          while (!go_) ::usleep(1000);
          right_ = check();
        }) {
    while (!made_) ::usleep(1000);
  }
  bool is_right() {
    go_ = true;
    thread_.join();
    return right_;
  }

 private:
  std::atomic<bool> made_ = false, go_ = false, right_ = false;
  std::thread thread_;
};

int roundtrip_of_thread(const std::function<void()>& make, const std::function<bool()>& check,
                        const RoundtripOptions& options) {
  return roundtrip(
      [&](Gate& gate) {
        Other other(make, check);
        Other plain([] {}, [] { return true; });  // made by the main thread
        gate.ready_and_go();
        CHECK_OR_DIE(other.is_right() && plain.is_right());
        return 0;
      },
      options);
}

const RoundtripOptions kSeveral{.generations = 3, .versions = 2};
const RoundtripOptions kSeveralAsRoot{.generations = 3, .versions = 2, .as_root = true};

TEST(ThreadState, DirectoriesComeBack) {
  if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  CHECK_OR_DIE(::chdir("/var") == 0);
                  ::umask(027);
                  std::unique_ptr<Other> shares;
                  const auto is = [](const char* path, mode_t mask) {
                    char now[64] = "";
                    CHECK_OR_DIE(::getcwd(now, sizeof now) != nullptr);
                    const mode_t was = ::umask(mask);
                    return std::string(now) == path && was == mask;
                  };
                  Other own(
                      [&] {
                        CHECK_OR_DIE(::unshare(CLONE_FS) == 0 && ::chdir("/usr") == 0);
                        ::umask(077);
                        // Made here, it shares them.
                        shares = std::make_unique<Other>([] {}, [&] { return is("/usr", 077); });
                      },
                      [&] { return is("/usr", 077); });
                  Other main([] {}, [&] { return is("/var", 027); });
                  gate.ready_and_go();
                  CHECK_OR_DIE(own.is_right() && shares->is_right() && main.is_right() && is("/var", 027));
                  CHECK_OR_DIE(::chdir("/tmp") == 0);  // nobody else's
                  return 0;
                },
                kSeveral),
            0);
}

TEST(ThreadState, RootDirectoryOfAThread) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root's threads get there";
  EXPECT_EQ(
      roundtrip_of_thread(
          [] { CHECK_OR_DIE(::unshare(CLONE_FS) == 0 && ::chroot("/usr") == 0 && ::chdir("/bin") == 0); },
          [] { return ::access("/bin/env", F_OK) == 0 && ::access("/usr", F_OK) != 0 && ::access("env", F_OK) == 0; },
          kSeveralAsRoot),
      0);
}

TEST(ThreadState, MountAndNetworkNamespacesComeBack) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root's threads get there";
  const auto differs = [](const char* name) {
    struct stat own {
    }, main{};
    CHECK_OR_DIE(::stat((std::string("/proc/thread-self/ns/") + name).c_str(), &own) == 0 &&
                 ::stat((std::string("/proc/self/ns/") + name).c_str(), &main) == 0);
    return own.st_ino != main.st_ino;
  };
  EXPECT_EQ(roundtrip_of_thread([] { CHECK_OR_DIE(::unshare(CLONE_NEWNS | CLONE_NEWNET) == 0); },
                                [&] { return differs("mnt") && differs("net"); }, kSeveralAsRoot),
            0);
}

TEST(ThreadState, UserIdsComeBack) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root's threads get there";
  EXPECT_EQ(roundtrip_of_thread(
                [] {
                  const gid_t groups[] = {4711, 4712};
                  CHECK_OR_DIE(::syscall(SYS_setgroups, 2, groups) == 0 && ::syscall(SYS_setresgid, 11, 12, 13) == 0 &&
                               ::syscall(SYS_setresuid, 21, 22, 0) == 0);
                },
                [] {
                  uid_t ids[3];
                  gid_t groups[3];
                  CHECK_OR_DIE(::getresuid(&ids[0], &ids[1], &ids[2]) == 0 &&
                               ::getresgid(&groups[0], &groups[1], &groups[2]) == 0);
                  gid_t more[4] = {};
                  return ids[0] == 21 && ids[1] == 22 && ids[2] == 0 && groups[0] == 11 && groups[1] == 12 &&
                         groups[2] == 13 && ::getgroups(4, more) == 2 && more[1] == 4712;
                },
                kSeveralAsRoot),
            0);
}

// The main thread gives up what the other one keeps, with capabilities kept over the change, and an ambient one.
TEST(ThreadState, CapabilitiesComeBack) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root's threads get there";
  const auto capabilities = [](bool set, uint32_t mask) {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2]{};
    if (set) data[0] = {mask, mask, mask};
    CHECK_OR_DIE(::syscall(set ? SYS_capset : SYS_capget, &header, data) == 0);
    return data[0].effective == mask && data[0].permitted == mask && data[0].inheritable == mask;
  };
  constexpr uint32_t kChown = 1u << CAP_CHOWN, kKill = 1u << CAP_KILL;
  EXPECT_EQ(roundtrip(
                [&](Gate& gate) {
                  Other none([&] { capabilities(true, 0); }, [&] { return capabilities(false, 0); });
                  Other ambient(
                      [&] {
                        CHECK_OR_DIE(::prctl(PR_SET_KEEPCAPS, 1) == 0 && ::syscall(SYS_setresuid, 33, 33, 33) == 0);
                        capabilities(true, kChown | kKill);
                        CHECK_OR_DIE(::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0) == 0);
                      },
                      [&] {
                        return capabilities(false, kChown | kKill) && ::getuid() == 33 &&
                               ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 0, 0) == 1;
                      });
                  Other all([] {}, [] { return ::geteuid() == 0 && ::chroot("/") == 0; });
                  CHECK_OR_DIE(::syscall(SYS_setresuid, 1000, 1000, 1000) == 0);
                  gate.ready_and_go();
                  CHECK_OR_DIE(none.is_right() && ambient.is_right() && all.is_right() && ::getuid() == 1000 &&
                               ::chroot("/") != 0);
                  return 0;
                },
                kSeveralAsRoot),
            0);
}

// Lets everything through but one call, which fails with an errno of its own.
void forbid(long call, uint32_t action, unsigned flags = 0) {
  sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
                        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call), 0, 1),
                        BPF_STMT(BPF_RET | BPF_K, action), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{4, code};
  CHECK_OR_DIE(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) == 0);
}

bool fails_with(long call, int error) { return ::syscall(call, 0, 0, 0, 0) == -1 && errno == error; }

// Of the main thread, inherited, of one thread alone, of a child: each has its own again, and no other.
TEST(ThreadState, FiltersComeBack) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root sees what a filter does";
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  CHECK_OR_DIE(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
                  forbid(SYS_getpgid, SECCOMP_RET_ERRNO | 71);
                  Other own(
                      [] {
                        forbid(SYS_getppid, SECCOMP_RET_ERRNO | 72, SECCOMP_FILTER_FLAG_LOG);
                        forbid(SYS_getpriority, SECCOMP_RET_ERRNO | 73);
                      },
                      [] {
                        return fails_with(SYS_getpgid, 71) && fails_with(SYS_getppid, 72) &&
                               fails_with(SYS_getpriority, 73);
                      });
                  Other inherits([] {}, [] { return fails_with(SYS_getpgid, 71) && !fails_with(SYS_getppid, 72); });
                  const pid_t child = ::fork();
                  if (child == 0) {
                    forbid(SYS_getsid, SECCOMP_RET_ERRNO | 74);
                    for (;;) ::usleep(1000);
                  }
                  gate.ready_and_go();
                  CHECK_OR_DIE(own.is_right() && inherits.is_right() && fails_with(SYS_getpgid, 71) && ::getppid() > 0);
                  CHECK_OR_DIE(::kill(child, SIGKILL) == 0 && ::waitpid(child, nullptr, 0) == child);
                  return 0;
                },
                kSeveral),
            0);
}

// What it forbids is what a version calls: all of it, or a call that is in every version.
TEST(ThreadState, FiltersThatEndTheThreadComeBack) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root puts filters aside";
  EXPECT_EQ(
      roundtrip(
          [](Gate& gate) {
            CHECK_OR_DIE(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
            int to[2], from[2];
            CHECK_OR_DIE(::pipe(to) == 0 && ::pipe(from) == 0);
            std::thread strict([&] {
              char byte;
              CHECK_OR_DIE(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
              ::syscall(SYS_read, to[0], &byte, 1);
              ::syscall(SYS_write, from[1], &byte, 1);
              ::syscall(SYS_exit, 0);
            });
            std::thread filtered([&] {
              char byte;
              install_filter(SECCOMP_RET_KILL_PROCESS);
              ::syscall(SYS_read, to[0], &byte, 1);
              ::syscall(SYS_write, from[1], &byte, 1);
              while (true) ::syscall(SYS_read, to[0], &byte, 1);
            });
            filtered.detach();  // may not end
            forbid(SYS_sigaltstack, SECCOMP_RET_KILL_PROCESS);
            gate.ready_and_go();
            char bytes[2];
            CHECK_OR_DIE(::write(to[1], "xx", 2) == 2 && ::read(from[0], bytes, 1) == 1 &&
                         ::read(from[0], bytes, 1) == 1);
            strict.join();
            CHECK_OR_DIE(::prctl(PR_GET_SECCOMP) == 2);
            const pid_t child = ::fork();
            if (child == 0) {
              ::syscall(SYS_sigaltstack, 0, 0);
              ::_exit(0);
            }
            int status = 0;
            CHECK_OR_DIE(::waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
            return 0;
          },
          {.generations = 3, .versions = 2, .same_view = false}),
      0);
}

void expect_sleeps_on(long forbidden, uint32_t action) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root sees what a filter does";
  EXPECT_EQ(roundtrip(
                [&](Gate& gate) {
                  CHECK_OR_DIE(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
                  std::atomic<bool> sleeps = false, slept = false;
                  std::thread thread([&] {
                    forbid(forbidden, action);
                    sleeps = true;
                    const timespec long_time{1, 500'000'000};
                    slept = ::nanosleep(&long_time, nullptr) == 0;
                  });
                  while (!sleeps) ::usleep(1000);
                  gate.ready_and_go();
                  thread.join();
                  CHECK_OR_DIE(slept);
                  return 0;
                },
                kSeveral),
            0);
}

// A sleep goes on with what is left of it, though the stop that reads the filters is the first one.
TEST(ThreadState, FilteredThreadSleepsOn) { expect_sleeps_on(SYS_getppid, SECCOMP_RET_ERRNO | 72); }

// The kernel goes on with a sleep by another call.
TEST(ThreadState, ThreadThatMayNotRestartACallSleepsOn) {
  expect_sleeps_on(SYS_restart_syscall, SECCOMP_RET_KILL_PROCESS);
}

TEST(ThreadState, MainThreadHasEnded) {
  if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
  const pid_t pid = ::fork();
  if (pid == 0) {
    std::thread([] { ::pause(); }).detach();
    ::syscall(SYS_exit, 0);
  }
  std::string text;
  for (int look = 0; look < 100 && text.empty(); ++look) {
    ::usleep(10'000);
    for (const Finding& finding : check_tree({pid}, {})) text += to_sentence(finding) + "\n";
    if (text.find("main thread") == std::string::npos) text.clear();
  }
  EXPECT_NE(text.find("its main thread has ended while others run"), std::string::npos) << text;
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

// Installed after the check: found on the stopped process, before a call is made in any thread.
TEST(ThreadState, FilterThatComesAfterTheCheck) {
  if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
  const Program program([] { install_filter(SECCOMP_RET_KILL_PROCESS); });
  InterruptedCalls calls;
  try {
    const StoppedTree tree({program.pid()}, calls);
    ADD_FAILURE() << "nothing was refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kBusy) << error.what();
    EXPECT_NE(std::string(error.what()).find("has installed a seccomp filter"), std::string::npos) << error.what();
  }
  EXPECT_TRUE(program.answers());
}

}  // namespace
}  // namespace icp::test
