// SPDX-License-Identifier: GPL-2.0-or-later
// /proc/PID/fdinfo/N (proc(5)): what the kernel tells about an open file without anybody opening it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace icp {

// A "lock:" line: a lock that this descriptor's process or description holds.
struct LockLine {
  enum class Kind { kPosix, kFlock, kOfd, kLease, kOther };
  Kind kind = Kind::kOther;
  int type = 0;                    // F_RDLCK or F_WRLCK
  uint64_t start = 0, length = 0;  // bytes; length 0: to the end of the file, however long it gets
  friend auto operator<=>(const LockLine&, const LockLine&) = default;
};

// An item of an epoll set. The file is known by device and inode only.
struct EpollLine {
  int fd = -1;  // number under which the file was added
  uint32_t events = 0;
  uint64_t data = 0;
  uint64_t dev = 0, ino = 0;  // as in struct stat
};

// Pure parser, no I/O. Lines that it does not know are kept in `text`.
struct FdInfo {
  uint64_t position = 0;
  uint32_t flags = 0;  // O_*, without O_CLOEXEC
  bool cloexec = false;
  std::vector<LockLine> locks;
  std::string text;

  static FdInfo parse(std::string text);
  // The value after "name:", blanks taken off; nothing when there is no such line.
  std::optional<std::string_view> field(std::string_view name) const;
  // The same as a number; nothing when it is missing or not a number.
  std::optional<uint64_t> number(std::string_view name, int base = 10) const;
  std::vector<EpollLine> epoll_lines() const;
};

}  // namespace icp
