// SPDX-License-Identifier: GPL-2.0-or-later
// What is said of a step that does nothing (hang_after in icp.yaml).
#pragma once

#include <chrono>
#include <string>

#include "coordinator/duration.h"

namespace icp {

inline std::string whole_seconds(std::chrono::milliseconds time) {
  using std::chrono::seconds;
  return format_duration(std::max<std::chrono::milliseconds>(std::chrono::duration_cast<seconds>(time), seconds(1)));
}

inline std::string hang_text(std::chrono::milliseconds idle) {
  return "it may hang: none of its processes has used processor time or done input or output for " +
         whole_seconds(idle);
}

}  // namespace icp
