// SPDX-License-Identifier: GPL-2.0-or-later
// Whether the processes of a step do anything: what /proc says of their processor time, and of their input and output.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <vector>

#include "engine/process/stopped_tree.h"

namespace icp {

class Activity {
 public:
  // True when they have used processor time (a clock tick of it) or done input or output since the last look, when one
  // has come or gone, and at the first look. Two small files for each process.
  bool look(const std::vector<ProcessRef>& processes);

 private:
  struct Used {
    uint64_t start_time = 0, ticks = 0, io = 0;
    bool operator==(const Used&) const = default;
  };
  static Used used_by(const ProcessRef& process);

  std::map<pid_t, Used> last_;
  bool first_ = true;
};

}  // namespace icp
