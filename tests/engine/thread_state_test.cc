// SPDX-License-Identifier: GPL-2.0-or-later
// What a thread has of its own: refused by name, and nothing of it is harmed.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
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

TEST(ThreadState, StrictMode) {
  expect_refused([] { CHECK_OR_DIE(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0); }, "seccomp's strict mode");
}

TEST(ThreadState, Filter) {
  expect_refused([] { install_filter(SECCOMP_RET_KILL_PROCESS); }, "has a seccomp filter");
}

TEST(ThreadState, WorkingDirectory) {
  expect_refused([] { CHECK_OR_DIE(::unshare(CLONE_FS) == 0); }, "has a working directory, root directory or umask of");
}

TEST(ThreadState, DescriptorTable) {
  expect_refused([] { CHECK_OR_DIE(::unshare(CLONE_FILES) == 0); }, "has a descriptor table of its own");
}

TEST(ThreadState, NetworkNamespace) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root's threads get there";
  expect_refused([] { CHECK_OR_DIE(::unshare(CLONE_NEWNET) == 0); }, "is in another net namespace");
}

TEST(ThreadState, UserIds) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root's threads get there";
  expect_refused([] { CHECK_OR_DIE(::syscall(SYS_setresuid, -1, 65534, -1) == 0); },
                 "has user and group ids of its own");
}

TEST(ThreadState, Groups) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root's threads get there";
  expect_refused(
      [] {
        const gid_t group = 4711;
        CHECK_OR_DIE(::syscall(SYS_setgroups, 1, &group) == 0);
      },
      "has supplementary groups of its own");
}

TEST(ThreadState, Capabilities) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root's threads get there";
  expect_refused(
      [] {
        __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
        __user_cap_data_struct data[2]{};
        CHECK_OR_DIE(::syscall(SYS_capset, &header, data) == 0);
      },
      "has capabilities of its own");
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
    EXPECT_EQ(error.kind(), ErrorKind::kRefused) << error.what();
    EXPECT_NE(std::string(error.what()).find("has a seccomp filter"), std::string::npos) << error.what();
  }
  EXPECT_TRUE(program.answers());
}

}  // namespace
}  // namespace icp::test
