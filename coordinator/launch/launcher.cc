// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/launch/launcher.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <string>
#include <vector>

#include "coordinator/launch/agent_socket.h"
#include "coordinator/launch/request.h"
#include "coordinator/launch/stand_in.h"
#include "coordinator/protocol/packet.h"
#include "engine/base/unique_fd.h"

namespace icp::launch {
namespace {

using protocol::Packet;
using protocol::Received;

constexpr int kNotStarted = 127 << 8;  // as wait(2) says it

class Launcher {
 public:
  Launcher(int control, int output) : control_(control), output_(output) {
    for (char** one = environ; *one != nullptr; one++) allocation_.emplace_back(*one);
  }

  int run(int signals) {
    protocol::send_packet(control_.get(), Packet(protocol::kLaunched).set_number("pid", ::getpid()));
    while (true) {
      pollfd entries[] = {{control_.get(), POLLIN, 0}, {signals, POLLIN, 0}};
      if (::poll(entries, 2, -1) < 0) continue;
      signalfd_siginfo info{};
      while (::read(signals, &info, sizeof info) == sizeof info) {
      }
      reap();
      if (entries[0].revents != 0 && !hear()) return 0;
    }
  }

 private:
  bool hear() {
    Packet packet;
    const Received got = protocol::receive_packet(control_.get(), packet, 0);
    if (got == Received::kNothing) return true;
    if (got != Received::kPacket) {
      for (const auto& [pid, number] : running_) ::kill(pid, SIGTERM);
      return false;
    }
    const int number = static_cast<int>(packet.number("number").value_or(0));
    if (packet.type == protocol::kLaunch) launch(number, packet);
    if (packet.type == protocol::kSignal) {
      const auto signal = packet.number("signal");
      for (const auto& [pid, of] : running_)
        if (of == number && signal && *signal > 0 && *signal < NSIG) ::kill(pid, static_cast<int>(*signal));
    }
    packet.close_fds();
    return true;
  }

  void launch(int number, const Packet& packet) {
    const auto request = packet.fds.empty() ? std::nullopt : Request::decode(read_from_memory(packet.fds[0]));
    const pid_t pid = request ? start(prepare(*request, number, packet)) : -1;
    if (pid > 0)
      running_[pid] = number;
    else
      ended(number, kNotStarted);
  }

  Request prepare(Request request, int number, const Packet& packet) const {
    const std::string restart = packet.get("restart_dir");
    if (restart != "none") request = in_new_allocation(std::move(request), allocation_);
    set_variable(request.environment, kNumberVariable + ("=" + std::to_string(number)));
    set_variable(request.environment, "SLURM_CHECKPOINT_DIR=" + packet.get("checkpoint_dir"));
    set_variable(request.environment, "SLURM_RESTART_DIR=" + restart);
    return request;
  }

  pid_t start(const Request& request) const {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    sigset_t none;
    sigemptyset(&none);
    for (int signal = 1; signal < NSIG; signal++) ::signal(signal, SIG_DFL);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    ::dup2(null, STDIN_FILENO);
    ::dup2(output_.get(), STDOUT_FILENO);
    ::dup2(output_.get(), STDERR_FILENO);
    ::close_range(STDERR_FILENO + 1, ~0U, 0);
    ::umask(request.umask);
    if (::chdir(request.directory.c_str()) != 0) ::_exit(127);
    ::execve(request.program.c_str(), pointers(request.arguments).data(), pointers(request.environment).data());
    ::_exit(127);
  }

  static std::vector<char*> pointers(const std::vector<std::string>& words) {
    std::vector<char*> list;
    for (const std::string& word : words) list.push_back(const_cast<char*>(word.c_str()));
    list.push_back(nullptr);
    return list;
  }

  void reap() {
    int status = 0;
    while (const pid_t pid = ::waitpid(-1, &status, WNOHANG)) {
      if (pid < 0) return;
      const auto found = running_.find(pid);
      if (found == running_.end()) continue;
      ended(found->second, status);
      running_.erase(found);
    }
  }

  void ended(int number, int status) const {
    protocol::send_packet(control_.get(),
                          Packet(protocol::kLaunchEnd).set_number("number", number).set_number("status", status));
  }

  const UniqueFd control_, output_;
  std::vector<std::string> allocation_;  // the environment that Slurm gave the script
  std::map<pid_t, int> running_;         // the number of the step
};

}  // namespace

int launch_steps(int control, int output) {
  for (const int fd : {control, output}) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  // What is meant for the script does not end it: it ends with the agent's socket.
  for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGPIPE, SIGALRM, SIGXCPU})
    ::signal(signal, SIG_IGN);
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &child, nullptr);
  const UniqueFd signals(::signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK));
  return Launcher(control, output).run(signals.get());
}

}  // namespace icp::launch
