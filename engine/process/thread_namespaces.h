// SPDX-License-Identifier: GPL-2.0-or-later
// Namespaces that a thread has of its own: unshare(2) of a privileged thread.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace icp {

// One look at the threads of one process. Comes back what unshare(2) alone makes: a mount namespace with the mounts of
// the thread it was made from, a network namespace in which nothing is.
class ThreadNamespaces {
 public:
  // Empty: nobody has others.
  ThreadNamespaces() = default;
  explicit ThreadNamespaces(pid_t pid) : pid_(pid) {}

  // CLONE_NEW* of those in which `tid` is and thread `maker` is not. `problem` names one that cannot come back.
  std::vector<uint32_t> own(pid_t tid, pid_t maker, std::string& problem);

 private:
  static constexpr size_t kKinds = 8;
  using Links = std::array<std::string, kKinds>;  // empty: none, in this kernel or any more
  const Links& links_of(pid_t tid);

  pid_t pid_ = 0;
  std::map<pid_t, Links> links_;
  std::set<std::string> taken_;  // by a thread before
};

}  // namespace icp
