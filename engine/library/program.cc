// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/library/program.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "engine/include/icp.h"

namespace slurm_icp {
namespace {

constexpr int kAnswer = 3;                  // its descriptor in icp
constexpr size_t kMostOfAnswer = 64 << 20;  // bytes; a version takes some 2 KiB, a finding some 300 bytes

[[noreturn]] void throw_system(const std::string& what, int error_number) {
  throw Error(ErrorKind::kSystem, what + ": " + std::strerror(error_number));
}

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() { reset(); }
  int get() const { return fd_; }
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
};

// What the child does between fork and exec.
class SpawnPlan {
 public:
  SpawnPlan() {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawnattr_init(&attributes_);
    // A caller that blocks or ignores signals means itself.
    sigset_t set;
    sigemptyset(&set);
    ::posix_spawnattr_setsigmask(&attributes_, &set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGPIPE);
    ::posix_spawnattr_setsigdefault(&attributes_, &set);
    ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;
  ~SpawnPlan() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }

  pid_t start(const std::string& program, const std::vector<std::string>& words, int answer, bool streams) {
    if (!streams) {
      for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        ::posix_spawn_file_actions_addopen(&actions_, fd, "/dev/null", fd == STDIN_FILENO ? O_RDONLY : O_WRONLY, 0);
    }
    ::posix_spawn_file_actions_adddup2(&actions_, answer, kAnswer);
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    pid_t pid = -1;
    const int error = ::posix_spawn(&pid, program.c_str(), &actions_, &attributes_, arguments.data(), environ);
    if (error != 0) throw_system("cannot run " + program, error);
    return pid;
  }

 private:
  posix_spawn_file_actions_t actions_{};
  posix_spawnattr_t attributes_{};
};

void take(int fd, std::string& text) {
  char buffer[8192];
  for (ssize_t got = 0; (got = ::read(fd, buffer, sizeof buffer)) != 0;) {
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return;  // EAGAIN: all for now
    if (text.size() + static_cast<size_t>(got) > kMostOfAnswer)
      throw Error(ErrorKind::kSystem, "icp answers with more than 64 MiB");
    text.append(buffer, static_cast<size_t>(got));
  }
}

// Until icp has ended: what it has started may keep the pipe open for longer.
std::string answer_of(pid_t pid, int fd) {
  const Descriptor process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (process.get() < 0) throw_system("cannot watch icp", errno);
  std::string text;
  pollfd watched[] = {{fd, POLLIN, 0}, {process.get(), POLLIN, 0}};
  while ((watched[1].revents & POLLIN) == 0) {
    if (::poll(watched, 2, -1) < 0 && errno != EINTR) throw_system("cannot wait for icp", errno);
    take(fd, text);
    if ((watched[0].revents & POLLHUP) != 0) watched[0].fd = -1;
  }
  take(fd, text);
  return text;
}

int wait_for(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno == EINTR) continue;
    if (errno == ECHILD) return 0;  // the caller ignores SIGCHLD, or has waited for every child
    throw_system("cannot wait for icp", errno);
  }
  return status;
}

std::string program_path() {
  const char* chosen = ::secure_getenv("ICP_PROGRAM");
  return chosen != nullptr && *chosen != '\0' ? chosen : ICP_PROGRAM_PATH;
}

ErrorKind kind_of(const std::string& name) {
  constexpr std::pair<const char*, ErrorKind> kKinds[] = {
      {"refused", ErrorKind::kRefused},       {"busy", ErrorKind::kBusy},   {"image", ErrorKind::kImage},
      {"permission", ErrorKind::kPermission}, {"usage", ErrorKind::kUsage}, {"gone", ErrorKind::kGone}};
  for (const auto& [known, kind] : kKinds)
    if (name == known) return kind;
  return ErrorKind::kSystem;
}

}  // namespace

nlohmann::json run_icp(const std::vector<std::string>& words, bool streams) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw_system("cannot make a pipe for icp", errno);
  const Descriptor reader(ends[0]);
  Descriptor writer(ends[1]);
  // Not where the child's own is to be: dup2 onto itself would leave it close-on-exec.
  Descriptor high(::fcntl(writer.get(), F_DUPFD_CLOEXEC, kAnswer + 1));
  if (high.get() < 0 || ::fcntl(reader.get(), F_SETFL, O_NONBLOCK) != 0) throw_system("cannot prepare a pipe", errno);
  writer.reset();
  const std::string program = program_path();
  std::vector<std::string> all{"icp", "--json-fd", std::to_string(kAnswer)};
  all.insert(all.end(), words.begin(), words.end());
  const pid_t pid = SpawnPlan().start(program, all, high.get(), streams);
  high.reset();
  std::string text;
  try {
    text = answer_of(pid, reader.get());
  } catch (...) {
    ::kill(pid, SIGKILL);
    wait_for(pid);
    throw;
  }
  const int status = wait_for(pid);
  if (WIFSIGNALED(status))
    throw Error(ErrorKind::kSystem, program + " was ended by signal " + std::to_string(WTERMSIG(status)));
  const nlohmann::json answer = nlohmann::json::parse(text, nullptr, false);
  if (!answer.is_object())
    throw Error(ErrorKind::kSystem,
                program + " gave no answer (exit status " + std::to_string(WEXITSTATUS(status)) + ")",
                "$ICP_PROGRAM names the icp of the same release");
  if (const auto error = answer.find("error"); error != answer.end() && error->is_object())
    throw Error(kind_of(error->value("kind", "")), error->value("text", ""), error->value("hint", ""));
  return answer;
}

}  // namespace slurm_icp
