// SPDX-License-Identifier: GPL-2.0-or-later
// Points in time as nanoseconds, and what times of files can tell.
#pragma once

#include <sys/stat.h>
#include <time.h>

#include <cstdint>

namespace icp {

inline int64_t nanoseconds(const timespec& time) { return time.tv_sec * 1'000'000'000ll + time.tv_nsec; }

inline int64_t now_ns(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return nanoseconds(now);
}

inline uint64_t now_unix_ms() { return static_cast<uint64_t>(now_ns(CLOCK_REALTIME) / 1'000'000); }

// Times of files go in steps of the kernel's coarse clock, on some file systems of two seconds, and then of whole ones:
// a file that was written to within a step before it was looked at may be written to within the same step afterwards.
// In nanoseconds, and well over a tick.
inline constexpr int64_t kFileTimeStep = 50'000'000, kLongFileTimeStep = 2'000'000'000;

// Whether a file that looked like `then` when it was read, at `read_ns` of CLOCK_REALTIME, and like `now` since has
// certainly not been written to in between.
inline bool is_unchanged(const struct stat& now, const struct stat& then, int64_t read_ns) {
  const int64_t changed = nanoseconds(now.st_ctim);
  return now.st_size == then.st_size && nanoseconds(now.st_mtim) == nanoseconds(then.st_mtim) &&
         changed == nanoseconds(then.st_ctim) &&
         changed + (now.st_ctim.tv_nsec == 0 ? kLongFileTimeStep : kFileTimeStep) < read_ns;
}

}  // namespace icp
