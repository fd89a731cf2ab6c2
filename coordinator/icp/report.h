// SPDX-License-Identifier: GPL-2.0-or-later
// What icp says on stderr: one line a version, one line an error.
#pragma once

#include <string>

#include "coordinator/icp/answer.h"
#include "engine/base/error.h"
#include "engine/session.h"

namespace icp {

// 0: errors and warnings; 1 (-v): what is done; 2 (-vv): debugging, with times.
void set_up_logging(int verbosity);

// "<sentence>; <hint>", printable, on one line.
std::string sentence(const Error& error);

// "12,345 pages, 48.2 MiB, stopped 3.1 ms, 0.21 s"
std::string summary(const pb::VersionStats& stats);

// Not thread-safe.
class Reporter {
 public:
  // Says what goes well only to a terminal, or with -v.
  explicit Reporter(int verbosity);
  void note(const std::string& text) const;
  void version_taken(const CheckpointResult& result);
  // Says it once, until a version succeeds or the reason changes.
  void version_failed(const std::string& reason);

 private:
  bool chatty_;
  std::string last_failure_;
};

}  // namespace icp
