// SPDX-License-Identifier: GPL-2.0-or-later
// Invariants, which are checked in what is installed, too: a version that does not hold what it should is worse than
// none. What fails is this version or restart, with a sentence; the processes run on as after any failure.
#pragma once

#include "engine/base/error.h"

namespace icp {

// Throws Error of kind kInternal: "<text> (<condition> does not hold at <file>:<line>)".
[[noreturn]] void check_failed(const char* condition, const char* file, int line, const std::string& text);

// ICP_CHECK(range.start < range.end, "process {}: a mapping {:x}-{:x}", pid, range.start, range.end): what it is about,
// with the pid and the address where there are such. The text is made only when the condition does not hold.
#define ICP_CHECK(condition, ...)                                                    \
  do {                                                                               \
    if (!(condition)) [[unlikely]]                                                   \
      ::icp::check_failed(#condition, __FILE__, __LINE__, fmt::format(__VA_ARGS__)); \
  } while (false)

}  // namespace icp
