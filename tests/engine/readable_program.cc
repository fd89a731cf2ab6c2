// SPDX-License-Identifier: GPL-2.0-or-later
// The tests' processes run as nobody, and their program is opened with nobody's rights at a restore. Where the build
// lies in a directory that nobody may not enter (root's home is one), the test runs from a copy elsewhere; and in the
// root directory, because a restored process must be able to enter its own.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace {

namespace fs = std::filesystem;

constexpr const char* kCopied = "ICP_TEST_IS_COPIED";

bool anybody_may_reach(const fs::path& program) {
  for (fs::path part = program; !part.empty(); part = part.parent_path()) {
    struct stat status {};
    if (::stat(part.c_str(), &status) != 0 || (status.st_mode & S_IXOTH) == 0) return false;
    if (part == part.root_path()) break;
  }
  return true;
}

// In the constructor's process: waits for the copy, removes it, and ends as it did.
[[noreturn]] void wait_for_copy(pid_t pid, const fs::path& directory) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  std::error_code ignored;
  fs::remove_all(directory, ignored);
  ::_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

[[gnu::constructor]] void run_where_nobody_may_read(int, char** argv, char**) {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error || ::geteuid() != 0 || std::getenv(kCopied) != nullptr || anybody_may_reach(program)) return;
  char directory[] = "/var/tmp/icp-test-XXXXXX";
  if (::mkdtemp(directory) == nullptr) return;
  const fs::path copy = fs::path(directory) / program.filename();
  fs::copy_file(program, copy, error);
  if (error || ::chmod(directory, 0755) != 0 || ::chmod(copy.c_str(), 0755) != 0) return;
  const pid_t pid = ::fork();
  if (pid < 0) return;
  if (pid > 0) wait_for_copy(pid, directory);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::setenv(kCopied, "1", 1);
  if (::chdir("/") != 0) ::_exit(127);
  ::execv(copy.c_str(), argv);
  std::perror(copy.c_str());
  ::_exit(127);
}

}  // namespace
