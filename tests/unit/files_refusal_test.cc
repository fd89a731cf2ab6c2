// SPDX-License-Identifier: GPL-2.0-or-later
// What is refused, each by its name; and that a check of running processes survives their changes.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pty.h>
#include <sys/fanotify.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <atomic>
#include <thread>

#include "files_test_util.h"

namespace icp::test {
namespace {

using ::testing::HasSubstr;

// The one finding about a child that holds what `setup` opens.
Finding finding(const std::function<void()>& setup) {
  Child child(setup);
  Findings findings = check(child);
  EXPECT_EQ(findings.size(), 1u);
  const std::string error = error_of(ErrorKind::kRefused, [&] { capture(child); });
  if (findings.empty()) return {};
  EXPECT_THAT(error, HasSubstr(findings[0].what));
  EXPECT_FALSE(findings[0].hint.empty());
  EXPECT_EQ(findings[0].where, "descriptor 3");
  EXPECT_EQ(findings[0].pid, child.pid());
  return findings[0];
}

sockaddr_in loopback() {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = ::htonl(INADDR_LOOPBACK);
  return address;
}

TEST(Refusal, InternetSocketsWithTheirAddresses) {
  const UniqueFd server(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = loopback();
  socklen_t length = sizeof address;
  ASSERT_EQ(::bind(server.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(server.get(), 1), 0);
  ASSERT_EQ(::getsockname(server.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  const Finding found = finding([&] {
    must(::socket(AF_INET, SOCK_STREAM, 0) == 3);
    must(::connect(3, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  });
  EXPECT_THAT(found.what, HasSubstr("to 127.0.0.1:" + std::to_string(::ntohs(address.sin_port)) + ", which is not"));
  EXPECT_THAT(found.hint, HasSubstr("external_tcp: reset"));
  EXPECT_THAT(finding([] { must(::socket(AF_INET, SOCK_STREAM, 262) == 3); }).what, HasSubstr("IP protocol 262"));
  EXPECT_THAT(finding([] { must(::socket(AF_PACKET, SOCK_DGRAM, 0) == 3); }).what, HasSubstr("packet socket"));
}

TEST(Refusal, KernelObjects) {
  EXPECT_THAT(finding([] { must(::fanotify_init(FAN_CLASS_NOTIF, 0) == 3); }).what, HasSubstr("fanotify"));
  EXPECT_THAT(finding([] { must(::open("/proc/self/mem", O_RDWR) == 3); }).what, HasSubstr("/mem"));
  const std::string other = "/proc/" + std::to_string(::getpid());
  EXPECT_THAT(finding([&] { must(::open((other + "/status").c_str(), O_RDONLY) == 3); }).what,
              HasSubstr("which is not in the job: " + other + "/status"));
  EXPECT_THAT(finding([&] { must(::open((other + "/fd").c_str(), O_RDONLY) == 3); }).what, HasSubstr("not in the job"));
  EXPECT_THAT(finding([] {
                must(::open("/proc/self/ns/uts", O_RDONLY) == 3);
                must(::unshare(CLONE_NEWUTS) == 0 || ::unshare(CLONE_NEWUSER | CLONE_NEWUTS) == 0);
              }).what,
              HasSubstr("uts:["));
  Child fine([] {
    must(::open("/proc/meminfo", O_RDONLY) == 3 &&
         ::open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY) == 4);
  });
  const Captured captured = capture(fine);
  Restored restored(captured);
  EXPECT_THAT(read_some(restored.fd(3)), HasSubstr("MemTotal"));
}

TEST(Refusal, TerminalsAndDevices) {
  int controller = -1, terminal = -1;
  char name[64];
  if (::openpty(&controller, &terminal, name, nullptr, nullptr) != 0) GTEST_SKIP() << "no terminals here";
  const Finding found = finding([&] { must(::open(name, O_RDWR | O_NOCTTY) == 3); });
  EXPECT_EQ(found.what, std::string("terminal ") + name + ", whose other end is outside of the job");
  EXPECT_THAT(found.hint, HasSubstr("icp run"));
  ::close(controller);
  ::close(terminal);
}

TEST(Refusal, TablesSharedBetweenProcesses) {
  Child child([] {
    if (::syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0) == 0) ::pause();
  });
  const Findings findings = check(child);
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(findings[0].where, "descriptor table");
  EXPECT_FALSE(findings[0].transient);
}

TEST(Refusal, ThreadsWithTablesOfTheirOwn) {
  Child child([] {
    static std::atomic<bool> ready = false;
    std::thread([] {
      must(::unshare(CLONE_FILES) == 0);
      ready = true;
      ::pause();
    }).detach();
    while (!ready) ::usleep(100);
  });
  const Findings findings = check(child);
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_THAT(findings[0].where, HasSubstr("thread "));
}

TEST(Check, AThreadGoesOnAfterItsLeader) {
  Child child([] {
    must(::open("/dev/zero", O_RDONLY) == 3);
    const pid_t grandchild = ::fork();
    if (grandchild == 0) {
      std::thread([] { ::pause(); }).detach();
      ::syscall(SYS_exit, 0);  // the leader only
    }
    wait_until_closed(grandchild, 3);
  });
  const Captured captured = capture(child);
  EXPECT_EQ(captured.file(3, 1).id(), captured.file(3, 0).id());
}

TEST(Check, ToleratesProcessesThatChangeAndEnd) {
  const pid_t busy = ::fork();
  ASSERT_GE(busy, 0);
  if (busy == 0) {
    ::close_range(3, ~0u, 0);
    const int null = ::open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++) ::dup2(null, fd);
    for (;;) {
      int pair[2], ends[2];
      if (::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0) ::close(pair[0]), ::close(pair[1]);
      if (::pipe(ends) == 0) ::close(ends[0]), ::close(ends[1]);
      if (::fork() == 0) ::_exit(0);
      ::waitpid(-1, nullptr, 0);
    }
  }
  for (int i = 0; i < 300; i++) {
    std::vector<ProcessRef> refs{{busy, busy, 0, "busy", false}};
    for (const pid_t pid : read_children(busy)) refs.push_back({pid, pid, 0, "short", false});
    Findings findings;
    EXPECT_NO_THROW(check_files(refs, {}, findings));
  }
  ::kill(busy, SIGKILL);
  ::waitpid(busy, nullptr, 0);
  Findings findings;
  EXPECT_NO_THROW(check_files({{busy, busy, 0, "gone", false}}, {}, findings));
}

}  // namespace
}  // namespace icp::test
