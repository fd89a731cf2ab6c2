// SPDX-License-Identifier: GPL-2.0-or-later
// libicp, from a program that knows nothing else of this project.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>

#include "engine/include/icp.h"
#include "engine/include/icp_c.h"

namespace {

using slurm_icp::ErrorKind;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

// Ends when `go` is there, with what it holds in memory as its exit status.
constexpr const char* kProgram = R"(
import os, time
held = b"x" * 42
for _ in range(6000):  # not for ever, if the test fails
    if os.path.exists("go"): break
    time.sleep(0.01)
open("result", "w").write(str(len(held)))
)";

class Library : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/var/tmp/icp-test-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    ::setenv("ICP_PROGRAM", ICP_PATH, 1);
  }
  void TearDown() override {
    end(child_, true);
    end(restored_, false);
    std::filesystem::remove_all(directory_);
  }

  static void end(pid_t pid, bool own) {
    if (pid <= 0) return;
    const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
    if (fd >= 0) {
      ::syscall(SYS_pidfd_send_signal, fd, SIGKILL, nullptr, 0);
      pollfd ended{fd, POLLIN, 0};
      ::poll(&ended, 1, 10'000);
      ::close(fd);
    }
    if (own) ::waitpid(pid, nullptr, 0);
  }

  std::string image() const { return directory_ + "/image"; }

  pid_t start(const std::function<void()>& prepare = [] {}) {
    child_ = ::fork();
    if (child_ == 0) {
      if (::chdir(directory_.c_str()) != 0) ::_exit(126);
      for (int fd = 0; fd < 3; ++fd) ::dup2(::open("/dev/null", O_RDWR), fd);
      ::close_range(3, ~0u, 0);
      prepare();
      ::execl("/usr/bin/python3", "python3", "-c", kProgram, nullptr);
      ::_exit(127);
    }
    // Not before it is python3: a version of what runs before exec would be one of this program.
    for (int tries = 0; tries < 1000 && comm() != "python3\n"; ++tries) ::usleep(10'000);
    return child_;
  }

  std::string comm() const {
    std::ifstream file("/proc/" + std::to_string(child_) + "/comm");
    return std::string(std::istreambuf_iterator<char>(file), {});
  }

  static ErrorKind kind_of(const std::function<void()>& call) {
    try {
      call();
    } catch (const slurm_icp::Error& error) {
      EXPECT_STRNE(error.what(), "");
      return error.kind();
    }
    ADD_FAILURE() << "no error";
    return ErrorKind::kSystem;
  }

  std::string directory_;
  pid_t child_ = 0, restored_ = 0;
};

TEST_F(Library, ChecksTakesListsVerifiesAndRestarts) {
  start();
  EXPECT_THAT(slurm_icp::check(child_), IsEmpty());
  const slurm_icp::Version first = slurm_icp::checkpoint(child_, image());
  EXPECT_EQ(first.number, 1u);
  EXPECT_TRUE(first.full);
  EXPECT_EQ(first.processes, 1u);
  EXPECT_GT(first.stop_ns, 0u);
  EXPECT_GT(first.pages_written, 100u);
  slurm_icp::CheckpointOptions last;
  last.kill = true;
  EXPECT_EQ(slurm_icp::checkpoint(child_, image(), last).number, 2u);
  int status = 0;
  ASSERT_EQ(::waitpid(std::exchange(child_, 0), &status, 0) > 0, true);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

  const std::vector<slurm_icp::Version> versions = slurm_icp::list(image());
  ASSERT_THAT(versions, SizeIs(2));
  EXPECT_EQ(versions[1].number, 2u);
  EXPECT_GT(versions[1].taken_unix_ns, versions[0].taken_unix_ns);
  slurm_icp::VerifyOptions thorough;
  thorough.restore = true;
  for (const slurm_icp::Verdict& verdict : slurm_icp::verify(image(), thorough)) {
    EXPECT_TRUE(verdict.whole);
    EXPECT_THAT(verdict.problems, IsEmpty());
  }

  restored_ = slurm_icp::restart(image());
  ASSERT_GT(restored_, 0);
  pollfd ended{static_cast<int>(::syscall(SYS_pidfd_open, restored_, 0)), POLLIN, 0};
  ASSERT_GE(ended.fd, 0);
  std::ofstream(directory_ + "/go").close();
  EXPECT_EQ(::poll(&ended, 1, 30'000), 1);
  ::close(ended.fd);
  restored_ = 0;
  std::string result;
  std::ifstream(directory_ + "/result") >> result;
  EXPECT_EQ(result, "42");
}

TEST_F(Library, SaysWhatCannotBeSaved) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const std::string path = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(ends[1]);
  start([&] {
    const int fd = ::open(path.c_str(), O_WRONLY);
    ::dup2(fd, 7);
    ::close(fd);
  });
  const std::vector<slurm_icp::Finding> findings = slurm_icp::check(child_);
  ASSERT_THAT(findings, SizeIs(1));
  EXPECT_EQ(findings[0].pid, child_);
  EXPECT_EQ(findings[0].command, "python3");
  EXPECT_EQ(findings[0].where, "descriptor 7");
  EXPECT_THAT(findings[0].what, HasSubstr("pipe"));
  EXPECT_THAT(findings[0].hint, Not(IsEmpty()));
  EXPECT_EQ(kind_of([&] { slurm_icp::checkpoint(child_, image()); }), ErrorKind::kRefused);
  size_t count = 0;
  char* text = nullptr;
  EXPECT_EQ(::icp_check(child_, &count, &text, nullptr), 0);
  EXPECT_EQ(count, 1u);
  EXPECT_THAT(text, HasSubstr("descriptor 7"));
  ::free(text);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_F(Library, ErrorsHaveAKind) {
  EXPECT_EQ(kind_of([&] { slurm_icp::list(image()); }), ErrorKind::kSystem);  // there is no such directory
  EXPECT_EQ(kind_of([&] { slurm_icp::check(0x3ffffff0); }), ErrorKind::kGone);
  EXPECT_EQ(kind_of([&] { slurm_icp::checkpoint(::getpid(), image()); }), ErrorKind::kUsage);  // icp is below it
  start();
  slurm_icp::CheckpointOptions wrong;
  wrong.compression = "bzip2";
  EXPECT_EQ(kind_of([&] { slurm_icp::checkpoint(child_, image(), wrong); }), ErrorKind::kUsage);
  slurm_icp::checkpoint(child_, image());
  slurm_icp::RestartOptions missing;
  missing.version = 7;
  EXPECT_NE(kind_of([&] { slurm_icp::restart(image(), missing); }), ErrorKind::kPermission);
  ::setenv("ICP_PROGRAM", "/nonexistent/icp", 1);
  EXPECT_EQ(kind_of([&] { slurm_icp::list(image()); }), ErrorKind::kSystem);
  ::setenv("ICP_PROGRAM", "/bin/true", 1);
  EXPECT_EQ(kind_of([&] { slurm_icp::list(image()); }), ErrorKind::kSystem);
}

TEST_F(Library, LeavesNothingBehindInTheCaller) {
  start();
  const auto descriptors = [] {
    const std::filesystem::directory_iterator all("/proc/self/fd"), end;
    return std::distance(all, end);
  };
  const auto before = descriptors();
  slurm_icp::checkpoint(child_, image());
  EXPECT_EQ(kind_of([&] { slurm_icp::check(0x3ffffff0); }), ErrorKind::kGone);
  EXPECT_EQ(descriptors(), before);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), 0);  // the program alone is left, and runs
}

TEST_F(Library, TheSameInC) {
  start();
  icp_error error{};
  icp_version version{};
  icp_checkpoint_options options{};
  options.size = sizeof options;
  options.keep = 1;
  ASSERT_EQ(::icp_checkpoint(child_, image().c_str(), &options, &version, &error), 0) << error.text;
  ASSERT_EQ(::icp_checkpoint(child_, image().c_str(), &options, &version, &error), 0) << error.text;
  EXPECT_EQ(version.number, 2u);
  icp_version* versions = nullptr;
  size_t count = 0;
  ASSERT_EQ(::icp_list(image().c_str(), &versions, &count, &error), 0) << error.text;
  ASSERT_GE(count, 1u);
  EXPECT_EQ(versions[count - 1].number, 2u);
  ::free(versions);
  EXPECT_EQ(::icp_verify(image().c_str(), 0, &error), 0) << error.text;
  EXPECT_EQ(::icp_verify(image().c_str(), 9, &error), -1);
  EXPECT_STRNE(error.text, "");
  EXPECT_EQ(::icp_list(nullptr, &versions, &count, &error), -1);
  EXPECT_EQ(error.kind, ICP_USAGE);
  end(std::exchange(child_, 0), true);
  pid_t root = 0;
  ASSERT_EQ(::icp_restart(image().c_str(), nullptr, &root, &error), 0) << error.text;
  restored_ = root;
  EXPECT_EQ(::kill(root, 0), 0);
}

// docs/examples/each_minute.cc, as it is built there.
TEST_F(Library, TheExampleTakesVersionsAndGoesOn) {
  ::setenv("EACH_MS", "300", 1);
  const auto run = [&] {
    const pid_t pid = ::fork();
    if (pid == 0) {
      if (::chdir(directory_.c_str()) != 0) ::_exit(126);
      for (int fd = 0; fd < 3; ++fd) ::dup2(::open("/dev/null", O_RDWR), fd);
      ::close_range(3, ~0u, 0);
      ::execl(ICP_EXAMPLE, "each_minute", image().c_str(), "python3", "-c", kProgram, nullptr);
      ::_exit(127);
    }
    return pid;
  };
  child_ = run();
  const auto latest = [&]() -> uint32_t {
    if (!std::filesystem::exists(image())) return 0;
    const auto versions = slurm_icp::list(image());
    return versions.empty() ? 0 : versions.back().number;
  };
  for (int tries = 0; tries < 600 && latest() < 2; ++tries) ::usleep(50'000);
  EXPECT_GE(latest(), 2u);
  std::ofstream(directory_ + "/go").close();
  int status = -1;
  EXPECT_GT(::waitpid(std::exchange(child_, 0), &status, 0), 0);
  EXPECT_EQ(status, 0);
  // The first one has written its result; the second does it again, from the version.
  std::filesystem::remove(directory_ + "/result");
  child_ = run();
  EXPECT_GT(::waitpid(std::exchange(child_, 0), &status, 0), 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/result"));
  ::unsetenv("EACH_MS");
}

}  // namespace
