// SPDX-License-Identifier: GPL-2.0-or-later
// icp-proxy SOCKET guard PID [signals]: the parent of a task's program, which ends as that ends, and asks icpstepd for
// a version before it hands SIGTERM on; with "signals" others, too.
//
// icp-proxy SOCKET [PMI_FD]: stands in for a restored task. Slurm knows this process: it lends its standard streams,
// and ends as the restored task ended. It runs as the job's user and has no rights that the task would not have.
//
// icp-proxy pmix LISTENER CONTROL: the relay of a step's PMIx messages on one node (coordinator/pmix/relay.h), which
// the first task of the step starts. icp-proxy pmi CONTROL: the same for PMI-1 (coordinator/pmi/relay.h).
//
// icp-proxy launch CONTROL OUTPUT: calls srun for a batch script's MPI launcher (coordinator/launch/launcher.h).
//
// srun (a link to it): stands in for srun in such a script (coordinator/launch/stand_in.h).
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "coordinator/checkpoint_moments.h"
#include "coordinator/launch/launcher.h"
#include "coordinator/launch/stand_in.h"
#include "coordinator/pmi/relay.h"
#include "coordinator/pmix/relay.h"
#include "coordinator/protocol/packet.h"

namespace {

using namespace icp::protocol;

constexpr int kPmiTimeoutMs = 10'000;

void put_line(const std::string& text) {
  const std::string line = text + "\n";
  if (::write(STDERR_FILENO, line.data(), line.size()) < 0) return;  // nobody reads any more
}

[[noreturn]] void end_like(int status) {
  if (WIFEXITED(status)) ::_exit(WEXITSTATUS(status));
  const int signal = WTERMSIG(status);
  // The core, if any, was the restored process's own.
  const rlimit none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);
  ::prctl(PR_SET_DUMPABLE, 0);
  ::signal(signal, SIG_DFL);
  sigset_t set;
  sigemptyset(&set);
  ::sigprocmask(SIG_SETMASK, &set, nullptr);
  ::kill(::getpid(), signal);
  ::_exit(128 + signal);
}

// All that can be caught, so that what Slurm sends does not end this process before the task it stands for.
int catch_signals() {
  sigset_t all;
  sigfillset(&all);
  for (const int fault : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT}) sigdelset(&all, fault);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  return ::signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
}

// Signals that came before the restored processes were there are for them.
void forward(int socket, int signals, bool hand_on) {
  signalfd_siginfo info{};
  while (::read(signals, &info, sizeof info) == sizeof info) {
    const int signal = static_cast<int>(info.ssi_signo);
    // Slurm sends these to tasks for its own purposes around a stop.
    if (hand_on && signal != SIGCHLD) send_packet(socket, Packet(kSignal).set_number("signal", signal));
  }
}

// The restored process has introduced itself to its process manager long ago: to the new one this is done for it. In
// the wire format 1.1 of PMI, which MPICH speaks. A manager that does not answer so has no restored task.
bool introduce(int pmi) {
  constexpr std::string_view kInit = "cmd=init pmi_version=1 pmi_subversion=1\n";
  if (::send(pmi, kInit.data(), kInit.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(kInit.size())) return false;
  std::string answer;
  while (answer.empty() || answer.back() != '\n') {
    pollfd wait{pmi, POLLIN, 0};
    char byte;
    if (::poll(&wait, 1, kPmiTimeoutMs) != 1 || ::recv(pmi, &byte, 1, 0) != 1) return false;
    answer += byte;
  }
  return answer.starts_with("cmd=response_to_init") && answer.find(" rc=0") != std::string::npos;
}

bool lend_streams(int socket, int pmi) {
  Packet packet(kStreams);
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd < 3; fd++) packet.fds.push_back(::fcntl(fd, F_GETFD) >= 0 ? fd : null);
  if (pmi >= 0 && introduce(pmi)) packet.fds.push_back(pmi);
  if (!send_packet(socket, packet)) return false;
  if (pmi >= 0) ::close(pmi);
  // With srun --pty this process has the terminal that the restored session is to take.
  if (::getsid(0) == ::getpid()) ::ioctl(STDIN_FILENO, TIOCNOTTY);
  // The restored processes own them now: their closing stdout must be seen by who reads it. stderr stays for lines
  // that icpstepd wants said.
  ::dup2(null, STDIN_FILENO);
  ::dup2(null, STDOUT_FILENO);
  return true;
}

int serve(int socket, int signals) {
  bool hand_on = false;
  while (true) {
    pollfd entries[] = {{socket, POLLIN, 0}, {signals, POLLIN, 0}};
    if (::poll(entries, 2, -1) < 0) continue;
    if ((entries[1].revents & POLLIN) != 0) forward(socket, signals, hand_on);
    if (entries[0].revents == 0) continue;
    Packet packet;
    const Received got = receive_packet(socket, packet, 0);
    if (got == Received::kNothing) continue;
    if (got != Received::kPacket) {
      put_line("slurm-icp: icpstepd has ended, and with it the restored processes");
      return 1;
    }
    packet.close_fds();
    if (packet.type == kSay) put_line(packet.get("text"));
    if (packet.type == kRestored) hand_on = packet.number("forward").value_or(0) != 0;
    if (packet.type == kExit) end_like(static_cast<int>(packet.number("status").value_or(0x100)));
    if (packet.type == kFail) {
      if (const std::string text = packet.get("text"); !text.empty()) put_line("slurm-icp: " + text);
      return 1;
    }
  }
}

// Without icpstepd all signals go straight on.
[[noreturn]] void guard(int socket, int signals, pid_t child, bool asks_for_all) {
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  ::dup2(null, STDIN_FILENO);  // who waits for the end of these must not wait for us
  ::dup2(null, STDOUT_FILENO);
  constexpr int kMostFds = 1024;
  for (int fd = STDERR_FILENO + 1; fd < kMostFds; fd++)
    if (fd != socket && fd != signals) ::close(fd);
  bool served = true, terminated = false;
  std::set<int> asked;
  while (true) {
    int status = 0;  // it may have ended before signals were caught
    while (::waitpid(child, &status, WNOHANG) == child)
      if (WIFEXITED(status) || WIFSIGNALED(status)) end_like(status);
    pollfd entries[] = {{signals, POLLIN, 0}, {served ? socket : -1, POLLIN, 0}};
    if (::poll(entries, 2, -1) < 0) continue;
    signalfd_siginfo info{};
    while (::read(signals, &info, sizeof info) == sizeof info) {
      const int signal = static_cast<int>(info.ssi_signo);
      if (signal == SIGCHLD) continue;
      // Slurm sends several: one is handed on when the version is there, SIGKILL comes if that takes too long.
      if (asked.contains(signal)) continue;
      const bool asks = signal == SIGTERM ? !terminated : asks_for_all && icp::is_asked_for(signal);
      if (served && asks && send_packet(socket, Packet(kSignal).set_number("signal", signal))) {
        asked.insert(signal);
      } else {
        ::kill(child, signal);
      }
    }
    if ((entries[1].revents) == 0) continue;
    Packet packet;
    const Received got = receive_packet(socket, packet, 0);
    packet.close_fds();
    if (got == Received::kClosed || got == Received::kBroken) served = false;
    const int answer = got == Received::kPacket && packet.type == kSignal
                           ? static_cast<int>(packet.number("signal").value_or(SIGTERM))
                           : 0;
    std::erase_if(asked, [&](int signal) {
      if (served && signal != answer) return false;
      ::kill(child, signal);
      terminated = terminated || signal == SIGTERM;
      return true;
    });
  }
}

// A process of the job that is none of the user's.
void become_relay() {
  // What is meant for the tasks does not end it: it ends with them.
  for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGPIPE, SIGALRM, SIGXCPU})
    ::signal(signal, SIG_IGN);
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

int relay_pmix(int listener, int control) {
  for (const int fd : {listener, control}) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  become_relay();
  icp::pmix::Relay(icp::UniqueFd(listener), icp::UniqueFd(control)).run();
  return 0;
}

int relay_pmi(int control) {
  ::fcntl(control, F_SETFD, FD_CLOEXEC);
  become_relay();
  icp::pmi::Relay{icp::UniqueFd(control)}.run();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 0 && std::string_view(::basename(argv[0])) == "srun") return icp::launch::stand_in_for_srun(argc, argv);
  if (argc == 4 && std::strcmp(argv[1], "launch") == 0)
    return icp::launch::launch_steps(std::atoi(argv[2]), std::atoi(argv[3]));
  if (argc == 4 && std::strcmp(argv[1], "pmix") == 0) return relay_pmix(std::atoi(argv[2]), std::atoi(argv[3]));
  if (argc == 3 && std::strcmp(argv[1], "pmi") == 0) return relay_pmi(std::atoi(argv[2]));
  const bool guards = (argc == 4 || argc == 5) && std::strcmp(argv[2], "guard") == 0;
  if (argc != 2 && argc != 3 && !guards) {
    put_line("icp-proxy is started by slurmstepd, see spank_icp(8)");
    return 2;
  }
  const int socket = std::atoi(argv[1]);
  ::fcntl(socket, F_SETFD, FD_CLOEXEC);
  const int signals = catch_signals();
  if (guards) guard(socket, signals, std::atoi(argv[3]), argc == 5);
  if (!lend_streams(socket, argc == 3 ? std::atoi(argv[2]) : -1)) {
    put_line("slurm-icp: cannot restart: icpstepd has ended");
    return 1;
  }
  return serve(socket, signals);
}
