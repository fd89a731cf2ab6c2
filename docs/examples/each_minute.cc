// SPDX-License-Identifier: GPL-2.0-or-later
// Runs a program, and takes a version of it each minute:
//   g++ -std=c++17 each_minute.cc $(pkg-config --cflags --libs icp) -o each_minute
//   ./each_minute DIR PROGRAM [ARGUMENT...]      when DIR holds a version, it goes on from there
#include <icp.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: %s DIR PROGRAM [ARGUMENT...]\n", argv[0]), 2;
  const int ms = std::getenv("EACH_MS") != nullptr ? std::atoi(std::getenv("EACH_MS")) : 60'000;
  const bool again = access(argv[1], F_OK) == 0 && !slurm_icp::list(argv[1]).empty();
  const pid_t pid = again ? slurm_icp::restart(argv[1]) : fork();
  if (pid == 0) {
    execvp(argv[2], argv + 2);
    _exit(127);
  }
  pollfd ended{static_cast<int>(syscall(SYS_pidfd_open, pid, 0)), POLLIN, 0};
  if (ended.fd < 0) return 0;  // so soon: a restarted program is not our child, and leaves no zombie
  while (poll(&ended, 1, ms) == 0) {
    try {
      const slurm_icp::Version version = slurm_icp::checkpoint(pid, argv[1], {false, 3, "zstd"});
      std::printf("version %u: %.1f ms\n", version.number, static_cast<double>(version.stop_ns) / 1e6);
    } catch (const slurm_icp::Error& error) {
      if (error.kind() == slurm_icp::ErrorKind::kGone) continue;  // it has ended
      std::fprintf(stderr, "no version: %s; %s\n", error.what(), error.hint().c_str());
    }
    std::fflush(stdout);
  }
}
