// SPDX-License-Identifier: GPL-2.0-or-later
// The job's end on a node, and what a stopped slurmd missed: both are icpstepd's work, in a process of its own.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "spank/job_run.h"
#include "spank/step.h"

namespace icp::spank {
namespace {

// Starts `icpstepd ARGUMENTS`; its complaints go where ours go. With `detach` nobody waits for it.
pid_t run_helper(const Settings& settings, std::vector<std::string> arguments, const std::string& node, bool detach) {
  arguments.insert(arguments.begin(), settings.icpstepd);
  arguments.insert(arguments.end(), {"--config", settings.config});
  std::vector<const char*> argv;
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  argv.push_back(nullptr);
  const std::string node_line = "SLURMD_NODENAME=" + node;
  const char* const sluid = std::getenv("SLURM_JOB_SLUID");  // its cgroup's name, from Slurm 26.05 on
  const std::string sluid_line = std::string("SLURM_JOB_SLUID=") + (sluid == nullptr ? "" : sluid);
  const char* const envp[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", node_line.c_str(),
                              sluid_line.c_str(), nullptr};
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  if (detach && ::fork() != 0) ::_exit(0);  // slurmd must not find a child it did not start
  ::setsid();
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDWR);
  ::dup2(null, STDIN_FILENO);
  if (detach) {
    ::dup2(null, STDOUT_FILENO);
    ::dup2(null, STDERR_FILENO);
  }
  for (int fd = 3; fd < 1024; fd++) ::close(fd);
  ::execve(argv[0], const_cast<char* const*>(argv.data()), const_cast<char* const*>(envp));
  ::_exit(127);
}

bool wait_at_most(pid_t pid, int seconds, int& status) {
  const timespec step{0, 2'000'000};
  for (int i = 0; i < seconds * 500; i++) {
    const pid_t got = ::waitpid(pid, &status, WNOHANG);
    if (got == pid || (got < 0 && errno == ECHILD)) return true;
    ::nanosleep(&step, nullptr);
  }
  ::kill(pid, SIGKILL);
  ::waitpid(pid, &status, 0);
  return false;
}

}  // namespace

void begin_job(spank_t handle, const Settings& settings) {
  const auto job = item<uint32_t>(handle, S_JOB_ID);
  const char* const node = std::getenv("SLURMD_NODENAME");
  const char* const count = std::getenv("SLURM_JOB_RESTART_COUNT");
  if (!job || node == nullptr) return;
  const unsigned long restarts = count == nullptr ? 0 : std::strtoul(count, nullptr, 10);
  record_restart_count(settings.run_dir, node, *job, static_cast<uint32_t>(restarts));
}

void end_job(spank_t handle, const Settings& settings) {
  const auto job = item<uint32_t>(handle, S_JOB_ID);
  const auto uid = item<uid_t>(handle, S_JOB_UID);
  const char* const name = std::getenv("SLURMD_NODENAME");
  if (!job || !uid || name == nullptr) {
    slurm_error("spank_icp: the epilog does not know job, user or node");
    return;
  }
  const char* const count = std::getenv("SLURM_JOB_RESTART_COUNT");
  const pid_t pid = run_helper(settings,
                               {"epilog", "--job", std::to_string(*job), "--uid", std::to_string(*uid), "--node", name,
                                "--restarts", count == nullptr ? "0" : count},
                               name, false);
  int status = 0;
  if (pid < 0) {
    slurm_error("spank_icp: job %u: cannot start %s: %s", *job, settings.icpstepd.c_str(), std::strerror(errno));
  } else if (!wait_at_most(pid, 30, status)) {
    slurm_error("spank_icp: job %u: %s took more than 30 s and was ended", *job, settings.icpstepd.c_str());
  } else if (status != 0) {
    slurm_error("spank_icp: job %u: %s failed (wait status 0x%x)", *job, settings.icpstepd.c_str(),
                static_cast<unsigned>(status));
  }
}

void clean_stale(const Settings& settings) {
  if (settings.ipc == IpcChoice::kOff) return;
  int status = 0;
  const pid_t pid = run_helper(settings, {"clean-stale"}, "", true);
  if (pid > 0) ::waitpid(pid, &status, 0);
}

}  // namespace icp::spank
