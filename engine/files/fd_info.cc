// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/fd_info.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

#include <charconv>
#include <cinttypes>
#include <cstdio>

namespace icp {
namespace {

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

template <typename Each>
void for_each_line(std::string_view text, Each each) {
  while (!text.empty()) {
    const size_t end = text.find('\n');
    each(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
}

// "1: POSIX  ADVISORY  WRITE 5390 fe:00:10952857 3 7", see lock_get_status() in the kernel's fs/locks.c.
LockLine parse_lock(std::string_view line) {
  char kind[16] = "", state[16] = "", access[16] = "", end[24] = "";
  uint64_t start = 0;
  LockLine lock;
  if (std::sscanf(std::string(line).c_str(), "%*d: %15s %15s %15s %*d %*s %" SCNu64 " %23s", kind, state, access,
                  &start, end) != 5) {
    return lock;
  }
  const std::string_view name = kind;
  if (name == "POSIX") lock.kind = LockLine::Kind::kPosix;
  if (name == "FLOCK") lock.kind = LockLine::Kind::kFlock;
  if (name == "LEASE" && std::string_view(state) == "ACTIVE") lock.kind = LockLine::Kind::kLease;
  if (name == "OFDLCK") lock.kind = LockLine::Kind::kOfd;
  lock.type = std::string_view(access) == "WRITE" ? F_WRLCK : F_RDLCK;
  lock.start = start;
  uint64_t last = 0;
  if (std::string_view(end) != "EOF" && std::sscanf(end, "%" SCNu64, &last) == 1 && last >= start) {
    lock.length = last - start + 1;
  }
  return lock;
}

}  // namespace

FdInfo FdInfo::parse(std::string text) {
  FdInfo info;
  info.text = std::move(text);
  info.position = info.number("pos").value_or(0);
  info.flags = static_cast<uint32_t>(info.number("flags", 8).value_or(0));
  info.cloexec = (info.flags & O_CLOEXEC) != 0;
  info.flags &= ~static_cast<uint32_t>(O_CLOEXEC);
  for_each_line(info.text, [&](std::string_view line) {
    if (line.starts_with("lock:")) info.locks.push_back(parse_lock(line.substr(5)));
  });
  return info;
}

std::optional<std::string_view> FdInfo::field(std::string_view name) const {
  std::optional<std::string_view> value;
  for_each_line(text, [&](std::string_view line) {
    if (!value && line.size() > name.size() && line.starts_with(name) && line[name.size()] == ':') {
      value = trimmed(line.substr(name.size() + 1));
    }
  });
  return value;
}

std::optional<uint64_t> FdInfo::number(std::string_view name, int base) const {
  const auto value = field(name);
  if (!value) return {};
  uint64_t number = 0;
  const auto result = std::from_chars(value->data(), value->data() + value->size(), number, base);
  if (result.ec != std::errc()) return {};
  return number;
}

std::vector<EpollLine> FdInfo::epoll_lines() const {
  std::vector<EpollLine> items;
  for_each_line(text, [&](std::string_view line) {
    if (!line.starts_with("tfd:")) return;
    EpollLine item;
    unsigned sdev = 0;
    if (std::sscanf(std::string(line).c_str(),
                    "tfd: %d events: %" SCNx32 " data: %" SCNx64 " pos:%*d ino:%" SCNx64 " sdev:%x", &item.fd,
                    &item.events, &item.data, &item.ino, &sdev) != 5) {
      return;
    }
    item.dev = ::makedev(sdev >> 20, sdev & 0xfffff);  // MKDEV() of the kernel, not the encoding of stat(2)
    items.push_back(item);
  });
  return items;
}

}  // namespace icp
