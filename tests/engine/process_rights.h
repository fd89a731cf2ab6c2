// SPDX-License-Identifier: GPL-2.0-or-later
// What the kernel lets a process do: rights, limits, priorities, kernel memory.
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <set>

namespace icp::test {

struct Rights {
  std::map<int, rlimit> limits;
  std::set<gid_t> groups;
  int oom_score_adj = 0, nice = 0, cpus = 0;
  uint64_t cap_bounding = 0;
};

Rights rights_of(pid_t pid);
// Fails the test where a process, one of its threads or one below it has more than a fresh process of user `uid` (whose
// group has the same number).
void check_rights_of_tree(pid_t pid, uid_t uid, const Rights& fresh);

}  // namespace icp::test
