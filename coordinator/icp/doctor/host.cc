// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/doctor/host.h"

#include <fcntl.h>
#include <glob.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <fstream>
#include <iterator>

#include "coordinator/icp/users.h"
#include "coordinator/protocol/coordinator_client.h"
#include "coordinator/protocol/munge_auth.h"
#include "engine/base/error.h"
#include "engine/base/unique_fd.h"

namespace icp::doctor {

namespace {

constexpr size_t kMostOfFile = 1 << 20;
constexpr std::chrono::seconds kMostOfProgram{10};
constexpr std::chrono::seconds kAnswer{10};

[[noreturn]] void execute(const std::vector<std::string>& command, int out) {
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const int null = ::open("/dev/null", O_RDWR);
  ::dup2(null, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(null, STDERR_FILENO);
  ::signal(SIGPIPE, SIG_DFL);
  ::execvp(arguments[0], arguments.data());
  ::_exit(127);
}

std::optional<std::string> run_program(const std::vector<std::string>& command) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return std::nullopt;
  UniqueFd in(ends[0]), out(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return std::nullopt;
  if (child == 0) execute(command, out.get());
  out.reset();
  std::string text;
  const auto end = std::chrono::steady_clock::now() + kMostOfProgram;
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    pollfd polled{in.get(), POLLIN, 0};
    if (left <= 0 || text.size() > kMostOfFile || ::poll(&polled, 1, static_cast<int>(left)) <= 0) {
      ::kill(child, SIGKILL);
      break;
    }
    char buffer[4096];
    const ssize_t got = ::read(in.get(), buffer, sizeof buffer);
    if (got <= 0) break;
    text.append(buffer, static_cast<size_t>(got));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return std::nullopt;
  return text;
}

void use_munge(const Config& config) {
  const net::MungeAuth munge(config.munge_socket);
  munge.decode(munge.encode("icp doctor", ::geteuid()));
}

net::Reply ask_icpctld(const Config& config) {
  net::ClientSettings settings;
  settings.coordinators = config.coordinators;
  settings.munge_socket = config.munge_socket;
  settings.coordinator_uid = user_identity(config.coordinator_user).uid;
  net::Request request;
  request.set_operation(net::OP_STATUS);
  request.set_versions(1);
  return net::ask(settings, request, kAnswer);
}

}  // namespace

Kernel Kernel::probe() {
  Kernel kernel;
  utsname name{};
  if (::uname(&name) == 0) {
    kernel.release = name.release;
    kernel.machine = name.machine;
  }
  kernel.trackers = available_trackers();
  io_uring_params parameters{};
  kernel.io_uring = static_cast<bool>(UniqueFd(static_cast<int>(::syscall(SYS_io_uring_setup, 1, &parameters))));
  return kernel;
}

Host Host::local() {
  Host host;
  host.kernel = Kernel::probe();
  host.run = run_program;
  host.try_munge = use_munge;
  host.ask_coordinator = ask_icpctld;
  return host;
}

bool Host::exists(const std::string& path) const { return ::access(at(path).c_str(), F_OK) == 0; }

std::optional<std::string> Host::read(const std::string& path) const {
  std::ifstream file(at(path), std::ios::binary);
  if (!file) return std::nullopt;
  std::string text(kMostOfFile, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) return std::nullopt;
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

std::string Host::word(const std::string& path) const {
  std::string text = read(path).value_or("");
  text.resize(text.find_last_not_of(" \t\r\n") + 1);
  return text;
}

std::vector<std::string> Host::matching(const std::string& pattern) const {
  glob_t found{};
  std::vector<std::string> paths;
  if (::glob(at(pattern).c_str(), 0, nullptr, &found) == 0)
    for (size_t i = 0; i < found.gl_pathc; i++) paths.emplace_back(found.gl_pathv[i] + root.size());
  ::globfree(&found);
  return paths;
}

}  // namespace icp::doctor
