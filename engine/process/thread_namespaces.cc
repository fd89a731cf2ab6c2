// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/thread_namespaces.h"

#include <sched.h>

#include <algorithm>
#include <iterator>
#include <sstream>
#include <string_view>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

constexpr uint32_t kNewTime = 0x80;  // CLONE_NEWTIME of linux/sched.h

struct Kind {
  const char* name;
  uint32_t flag;
};
constexpr Kind kKindsOfNamespace[] = {{"mnt", CLONE_NEWNS},        {"net", CLONE_NEWNET}, {"uts", CLONE_NEWUTS},
                                      {"ipc", CLONE_NEWIPC},       {"pid", CLONE_NEWPID}, {"user", CLONE_NEWUSER},
                                      {"cgroup", CLONE_NEWCGROUP}, {"time", kNewTime}};

std::string of_thread(pid_t pid, pid_t tid, const char* name) {
  try {
    return read_proc(pid, fmt::format("task/{}/{}", tid, name));
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kGone) throw;
    return {};
  }
}

// /proc/PID/mountinfo without the numbers of the mounts and of their parents, which a copy has of its own.
std::vector<std::string> mounts_of(pid_t pid, pid_t tid) {
  std::vector<std::string> mounts;
  std::istringstream lines(of_thread(pid, tid, "mountinfo"));
  for (std::string line; std::getline(lines, line);) {
    const size_t parent = line.find(' ');
    const size_t rest = parent == std::string::npos ? parent : line.find(' ', parent + 1);
    if (rest != std::string::npos) mounts.push_back(line.substr(rest));
  }
  std::sort(mounts.begin(), mounts.end());
  return mounts;
}

// Whether there is nothing but what the kernel puts there: `lo`, which is down, and the tunnels' fall-backs.
bool is_new_network(pid_t pid, pid_t tid) {
  constexpr std::string_view kOfKernel[] = {"lo",      "tunl0",    "gre0", "gretap0", "erspan0",
                                            "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"};
  std::istringstream devices(of_thread(pid, tid, "net/dev"));
  std::string line;
  for (int header = 0; header < 2; ++header) std::getline(devices, line);
  while (std::getline(devices, line)) {
    const size_t name = line.find_first_not_of(' ');
    const std::string_view device = std::string_view(line).substr(name, line.find(':') - name);
    if (std::find(std::begin(kOfKernel), std::end(kOfKernel), device) == std::end(kOfKernel)) return false;
  }
  // An interface that is up has addresses; then the sockets, each file with a heading.
  if (!of_thread(pid, tid, "net/if_inet6").empty() || !of_thread(pid, tid, "net/fib_trie").empty()) return false;
  constexpr const char* kSockets[] = {"net/unix", "net/tcp",  "net/tcp6", "net/udp",   "net/udp6",  "net/udplite",
                                      "net/raw",  "net/raw6", "net/icmp", "net/icmp6", "net/packet"};
  return std::all_of(std::begin(kSockets), std::end(kSockets), [&](const char* file) {
    const std::string text = of_thread(pid, tid, file);
    return std::count(text.begin(), text.end(), '\n') <= 1;
  });
}

}  // namespace

const ThreadNamespaces::Links& ThreadNamespaces::links_of(pid_t tid) {
  static_assert(std::size(kKindsOfNamespace) == kKinds);
  const auto [known, is_new] = links_.try_emplace(tid);
  if (!is_new) return known->second;
  for (size_t i = 0; i < kKinds; ++i) {
    try {
      known->second[i] = read_proc_link(pid_, fmt::format("task/{}/ns/{}", tid, kKindsOfNamespace[i].name));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
    }
  }
  return known->second;
}

std::vector<uint32_t> ThreadNamespaces::own(pid_t tid, pid_t maker, std::string& problem) {
  std::vector<uint32_t> flags;
  if (pid_ == 0) return flags;
  const Links &here = links_of(tid), &there = links_of(maker);
  for (size_t i = 0; i < kKinds; ++i) {
    if (here[i] == there[i] || here[i].empty() || there[i].empty()) continue;
    const auto& [name, flag] = kKindsOfNamespace[i];
    if (!taken_.insert(here[i]).second)
      problem = fmt::format("shares a {} namespace with another thread, and not with the main one", name);
    else if (flag == CLONE_NEWNS && mounts_of(pid_, tid) != mounts_of(pid_, maker))
      problem = "is in another mnt namespace, with mounts of its own";
    else if (flag == CLONE_NEWNET && !is_new_network(pid_, tid))
      problem = "is in another net namespace, which is in use";
    else if (flag != CLONE_NEWNS && flag != CLONE_NEWNET)
      problem = fmt::format("is in another {} namespace", name);
    flags.push_back(flag);
  }
  return flags;
}

}  // namespace icp
