// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/site_script.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "engine/base/error.h"

namespace icp {
namespace {

// In the forked child: async-signal-safe calls only, since the agent has another thread.
[[noreturn]] void run(const char* const* argv, const char* const* envp, const Identity& user, const char* directory) {
  sigset_t none;
  sigemptyset(&none);
  for (int signal = 1; signal < NSIG; signal++) ::signal(signal, SIG_DFL);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::setsid();
  const int null = ::open("/dev/null", O_RDWR);
  for (int fd = 0; fd < 3; fd++) ::dup2(null, fd);
  ::close_range(3, ~0U, 0);
  const bool root = ::geteuid() == 0;  // else it is the user already
  if ((root && ::setgroups(user.groups.size(), user.groups.data()) != 0) ||
      ::setresgid(user.gid, user.gid, user.gid) != 0 || ::setresuid(user.uid, user.uid, user.uid) != 0) {
    ::_exit(126);
  }
  if (::chdir(directory) != 0 && ::chdir("/") != 0) ::_exit(126);
  ::execve(argv[0], const_cast<char* const*>(argv), const_cast<char* const*>(envp));
  ::_exit(127);
}

}  // namespace

void start_site_script(const std::string& script, const Identity& user, uint32_t job, const std::string& step,
                       int error, const std::string& directory, const std::function<void(pid_t)>& join) {
  if (::access(script.c_str(), X_OK) != 0) {
    spdlog::warn("site_script: {}: {}", script, std::strerror(errno));
    return;
  }
  const std::string job_text = std::to_string(job), error_text = std::to_string(error);
  const char* const argv[] = {script.c_str(),     job_text.c_str(),  step.c_str(),
                              error_text.c_str(), directory.c_str(), nullptr};
  const char* const envp[] = {"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL=C.UTF-8", nullptr};
  int go[2];
  if (::pipe2(go, O_CLOEXEC) != 0) {
    spdlog::warn("site_script: {}", std::strerror(errno));
    return;
  }
  // Twice: init reaps it, whenever it ends. Not before it is where the job is, since the job's processes may do with it
  // what they like.
  const pid_t middle = ::fork();
  if (middle == 0) {
    ::close(go[1]);
    char byte = 0;
    if (::read(go[0], &byte, 1) != 1) ::_exit(1);
    const pid_t child = ::fork();
    if (child == 0) run(argv, envp, user, directory.c_str());
    ::_exit(child < 0 ? 1 : 0);
  }
  ::close(go[0]);
  try {
    if (middle > 0) join(middle);
    if (::write(go[1], "g", 1) != 1) spdlog::warn("site_script: {}", std::strerror(errno));
  } catch (const Error& failed) {
    spdlog::warn("site_script: {}", failed.what());
  }
  ::close(go[1]);
  int status = 0;
  while (middle > 0 && ::waitpid(middle, &status, 0) < 0 && errno == EINTR) {
  }
  if (middle < 0 || status != 0) spdlog::warn("site_script: cannot start {}", script);
}

}  // namespace icp
