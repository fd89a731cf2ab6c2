// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/lost_children.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <string_view>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

std::set<std::string> environment_of(pid_t pid) {
  // What shells change by themselves.
  static constexpr std::array<std::string_view, 4> kChanging{"_=", "SHLVL=", "PWD=", "OLDPWD="};
  std::set<std::string> entries;
  const std::string all = read_proc(pid, "environ");
  for (size_t begin = 0, end = 0; begin < all.size(); begin = end + 1) {
    end = std::min(all.find('\0', begin), all.size());
    const std::string entry = all.substr(begin, end - begin);
    const auto is_changing = [&](std::string_view name) { return entry.starts_with(name); };
    if (!entry.empty() && std::none_of(kChanging.begin(), kChanging.end(), is_changing)) entries.insert(entry);
  }
  return entries;
}

// Ancestors that may adopt orphans: all but the parent, who would have to wait for other children of its own.
std::set<pid_t> adopters_of(pid_t root) {
  std::set<pid_t> adopters{1};
  const pid_t parent = ProcStat::read(root).ppid;
  for (pid_t pid = parent; pid > 1; pid = ProcStat::read(pid).ppid)
    if (pid != parent) adopters.insert(pid);
  return adopters;
}

// The caller and whatever it was started by; and icp itself, whatever it does: restarting another tree, for example.
bool is_ours(pid_t pid) {
  for (pid_t own = getpid(); own > 1; own = ProcStat::read(own).ppid)
    if (own == pid) return true;
  struct stat mine {
  }, its{};
  return stat("/proc/self/exe", &mine) == 0 && stat(fmt::format("/proc/{}/exe", pid).c_str(), &its) == 0 &&
         mine.st_dev == its.st_dev && mine.st_ino == its.st_ino;
}

struct Traits {
  uid_t uid = 0;
  std::string cgroups;
  std::set<std::string> environment;

  explicit Traits(pid_t pid)
      : uid(ProcStatus::read(pid).uid[0]), cgroups(read_proc(pid, "cgroup")), environment(environment_of(pid)) {}
  bool made(const Traits& child) const {
    return uid == child.uid && cgroups == child.cgroups && !environment.empty() &&
           std::includes(child.environment.begin(), child.environment.end(), environment.begin(), environment.end());
  }
};

}  // namespace

std::vector<pid_t> lost_children(pid_t root) {
  std::vector<pid_t> found;
  try {
    const uint64_t began = ProcStat::read(root).start_time_ticks;
    const std::set<pid_t> adopters = adopters_of(root);
    const pid_t parent = ProcStat::read(root).ppid;
    const Traits traits(root);
    for (const pid_t adopter : adopters) {
      for (const pid_t pid : read_children(adopter)) {
        try {
          if (pid == root || pid == parent || adopters.contains(pid) || ProcStat::read(pid).start_time_ticks < began)
            continue;
          if (traits.made(Traits(pid)) && !is_ours(pid)) found.push_back(pid);
        } catch (const Error&) {
          continue;  // it has ended, or is another user's
        }
      }
    }
  } catch (const Error&) {
    // The root has ended.
  }
  return found;
}

}  // namespace icp
