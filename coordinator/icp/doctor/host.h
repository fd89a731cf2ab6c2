// SPDX-License-Identifier: GPL-2.0-or-later
// The machine that icp doctor looks at, as its checks see it: files below a directory, and a few questions that only
// the machine itself can answer. Tests give other answers.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/config.h"
#include "coordinator/protocol/coordinator.pb.h"
#include "engine/tracker/page_tracker.h"

namespace icp::doctor {

// What the kernel does when it is asked to.
struct Kernel {
  std::string release, machine;       // uname(2)
  std::vector<TrackerKind> trackers;  // available_trackers()
  bool io_uring = false;              // a ring can be made

  static Kernel probe();
};

// Not thread-safe.
struct Host {
  std::string root;         // in front of all paths; empty: the machine's own files
  uid_t administrator = 0;  // whose the installed files are to be
  Kernel kernel;

  // Standard output of a program (PATH is searched); nothing when it cannot be run, fails, or takes more than ten
  // seconds.
  std::function<std::optional<std::string>(const std::vector<std::string>& command)> run;
  // Makes and decodes a credential; throws Error.
  std::function<void(const Config& config)> try_munge;
  // Any answer of icpctld; throws Error.
  std::function<net::Reply(const Config& config)> ask_coordinator;

  // This machine.
  static Host local();

  std::string at(const std::string& path) const { return root + path; }
  bool exists(const std::string& path) const;
  // The whole file, at most 1 MiB of it; nothing when it cannot be read.
  std::optional<std::string> read(const std::string& path) const;
  // The same without the white space at its end; empty when it cannot be read.
  std::string word(const std::string& path) const;
  // Paths that match, sorted, without the root.
  std::vector<std::string> matching(const std::string& pattern) const;
};

}  // namespace icp::doctor
