// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/start_program.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

namespace icp::spank {
namespace {

constexpr int kReport = 5;

// Runs in the forked child: async-signal-safe calls only, since slurmstepd has other threads. Reports errno through
// `report` when the program cannot be executed.
[[noreturn]] void become_program(const char* const* argv, const char* const* envp, int third, int fourth, int report) {
  ::setsid();
  sigset_t none;
  sigemptyset(&none);
  for (int signal = 1; signal < NSIG; signal++) ::signal(signal, SIG_DFL);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  // Out of the way of the numbers to come first.
  third = ::fcntl(third, F_DUPFD_CLOEXEC, 10);
  fourth = ::fcntl(fourth, F_DUPFD_CLOEXEC, 10);
  report = ::fcntl(report, F_DUPFD_CLOEXEC, 10);
  // slurmstepd's descriptors hold the step's streams open: srun would wait for us.
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd < 3; fd++) ::dup2(null, fd);
  ::dup2(third, 3);
  ::dup2(fourth, 4);
  ::dup2(report, kReport);
  ::fcntl(kReport, F_SETFD, FD_CLOEXEC);
  ::close_range(kReport + 1, ~0U, 0);
  if (::chdir("/") != 0) ::_exit(1);
  ::execve(argv[0], const_cast<char* const*>(argv), const_cast<char* const*>(envp));
  const int error = errno;
  if (::write(kReport, &error, sizeof error) < 0) ::_exit(2);
  ::_exit(1);
}

}  // namespace

int start_program(const char* const* argv, const char* const* envp, int third, int fourth) {
  int report[2];
  if (::pipe2(report, O_CLOEXEC) != 0) return errno;
  const pid_t middle = ::fork();
  if (middle == 0) {
    const pid_t program = ::fork();
    if (program == 0) become_program(argv, envp, third, fourth, report[1]);
    ::_exit(program < 0 ? 1 : 0);
  }
  int error = middle < 0 ? errno : 0, status = 0;
  ::close(report[1]);
  while (middle > 0 && ::waitpid(middle, &status, 0) < 0 && errno == EINTR) {
  }
  if (middle > 0) {
    int told = 0;
    ssize_t got = 0;
    do {
      got = ::read(report[0], &told, sizeof told);
    } while (got < 0 && errno == EINTR);
    if (got == sizeof told) error = told;
    if (status != 0) error = EAGAIN;
  }
  ::close(report[0]);
  return error;
}

}  // namespace icp::spank
