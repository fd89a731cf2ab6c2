// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/launch/stand_in.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "coordinator/launch/agent_socket.h"
#include "coordinator/launch/request.h"
#include "coordinator/protocol/packet.h"
#include "engine/base/unique_fd.h"

namespace icp::launch {
namespace {

using protocol::Packet;
using protocol::Received;

constexpr int kNotStarted = 1;
constexpr int kPatience = 120'000;  // ms for the agent, which may be in a version

void complain(const std::string& text) {
  const std::string line = "slurm-icp: srun: " + text + "\n";
  if (::write(STDERR_FILENO, line.data(), line.size()) < 0) return;  // nobody reads any more
}

// Whether this very program is executed by that name: it would go on for ever.
bool is_this_program(const std::string& file) {
  struct stat facts {
  }, own{};
  return ::stat(file.c_str(), &facts) == 0 && ::stat("/proc/self/exe", &own) == 0 && facts.st_dev == own.st_dev &&
         facts.st_ino == own.st_ino;
}

// Without the directories that lead here, however they are called: the script may have lost the variable that says how.
std::vector<std::string> search_path(const std::string& path, const std::string& left_out) {
  std::vector<std::string> directories;
  for (size_t at = 0; at <= path.size();) {
    const size_t end = std::min(path.find(':', at), path.size());
    const std::string directory = path.substr(at, end - at);
    if (directory != left_out && !is_this_program(directory + "/srun")) directories.push_back(directory);
    at = end + 1;
  }
  return directories;
}

std::string join(const std::vector<std::string>& directories) {
  std::string path;
  for (size_t i = 0; i < directories.size(); i++) path += (i == 0 ? "" : ":") + directories[i];
  return path;
}

std::string find_srun(const std::vector<std::string>& directories) {
  for (const std::string& directory : directories) {
    const std::string file = directory + "/srun";
    struct stat facts {};
    if (file[0] == '/' && ::stat(file.c_str(), &facts) == 0 && S_ISREG(facts.st_mode) &&
        ::access(file.c_str(), X_OK) == 0)
      return file;
  }
  return {};
}

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// Sends the request, and gets the socket that is used from then on.
UniqueFd ask(const std::string& name, const Request& request) {
  const UniqueFd agent = connect_to(name);
  const std::string bytes = request.encode();
  const UniqueFd file = bytes.size() > kMaxRequest ? UniqueFd() : put_in_memory(bytes);
  if (!agent || !file) return {};
  Packet packet(protocol::kLaunch);
  packet.fds = {file.get()};
  if (!protocol::send_packet(agent.get(), packet)) return {};
  Packet answer;
  if (protocol::receive_packet(agent.get(), answer, kPatience) != Received::kPacket) return {};
  if (answer.type != protocol::kLaunched || answer.fds.size() != 1) {
    answer.close_fds();
    return {};
  }
  return UniqueFd(answer.fds[0]);
}

int exit_status_of(int status) {
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  return 128 + WTERMSIG(status);
}

// Until srun has ended. What comes as a signal is for srun.
int wait_for_end(int agent, int signals) {
  while (true) {
    pollfd entries[] = {{agent, POLLIN, 0}, {signals, POLLIN, 0}};
    if (::poll(entries, 2, -1) < 0) continue;
    signalfd_siginfo info{};
    while (::read(signals, &info, sizeof info) == sizeof info)
      protocol::send_packet(agent, Packet(protocol::kSignal).set_number("signal", info.ssi_signo));
    if (entries[0].revents == 0) continue;
    Packet packet;
    const Received got = protocol::receive_packet(agent, packet, 0);
    if (got == Received::kNothing) continue;
    packet.close_fds();
    if (got != Received::kPacket) {
      complain("icpstepd has ended, and with it what srun had started");
      return kNotStarted;
    }
    if (packet.type == protocol::kLaunchEnd)
      return exit_status_of(static_cast<int>(packet.number("status").value_or(kNotStarted << 8)));
  }
}

}  // namespace

int stand_in_for_srun(int argc, char** argv) {
  const std::vector<std::string> directories = search_path(variable("PATH"), variable(kPathVariable));
  const std::string socket = variable(kSocketVariable), srun = find_srun(directories);
  ::setenv("PATH", join(directories).c_str(), 1);
  ::unsetenv(kPathVariable);
  ::unsetenv(kSocketVariable);
  if (srun.empty()) {
    complain("not found in PATH");
    return 127;
  }
  Request request{srun, "/", ::umask(0), {argv, argv + argc}, {}};
  ::umask(request.umask);
  if (starts_daemons(request.arguments)) {
    char* const here = ::getcwd(nullptr, 0);
    if (here != nullptr) request.directory = here;
    std::free(here);
    for (char** one = environ; *one != nullptr; one++) request.environment.emplace_back(*one);
    sigset_t handed_on;
    sigemptyset(&handed_on);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCONT})
      sigaddset(&handed_on, signal);
    sigset_t before;
    ::sigprocmask(SIG_BLOCK, &handed_on, &before);
    if (const UniqueFd agent = ask(socket, request)) {
      const UniqueFd signals(::signalfd(-1, &handed_on, SFD_CLOEXEC | SFD_NONBLOCK));
      return wait_for_end(agent.get(), signals.get());
    }
    ::sigprocmask(SIG_SETMASK, &before, nullptr);
    complain("icpstepd does not answer: this step is not part of the batch script's checkpoints");
  }
  argv[0] = const_cast<char*>("srun");
  ::execv(srun.c_str(), argv);
  complain("cannot execute " + srun + ": " + std::strerror(errno));
  return 127;
}

}  // namespace icp::launch
