// SPDX-License-Identifier: GPL-2.0-or-later
// Lines for the user, on the step's own standard error.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace icp {

// A task's standard stream as it was when the task started.
struct StreamId {
  uint64_t dev = 0, ino = 0;
  uint32_t mode = 0;  // st_mode, 0: was closed
  uint64_t rdev = 0;
};

// Writes a line to the stderr a task was started with, found again in the task (descriptor 2, or wherever it put it).
// The agent does not keep that stream open: srun waits until everybody has closed it. Never blocks for longer than a
// second, never throws. False when the stream is nowhere to be found.
bool write_to_task(pid_t pid, const StreamId& stream, const std::string& line);

// Says each complaint once, and again when it has changed or was absent for a while. One thread.
class Notices {
 public:
  using Writer = std::function<void(const std::string& line, bool complaint)>;
  explicit Notices(Writer writer) : writer_(std::move(writer)) {}

  void complain(const std::string& text);
  void say(const std::string& text) { writer_(text, false); }
  void all_is_well() { last_.clear(); }

 private:
  Writer writer_;
  std::string last_;
};

}  // namespace icp
