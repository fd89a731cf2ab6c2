// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/procfs.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <optional>

#include "engine/base/error.h"
#include "engine/base/unique_fd.h"

namespace icp {
namespace {

std::string proc_path(pid_t pid, std::string_view name) { return fmt::format("/proc/{}/{}", pid, name); }

[[noreturn]] void throw_proc(pid_t pid, std::string_view name) {
  const int saved = errno;
  const bool gone = saved == ENOENT || saved == ESRCH;
  throw Error(gone ? ErrorKind::kGone : ErrorKind::kSystem,
              fmt::format("cannot read {}: {}", proc_path(pid, name), errno_text(saved)), saved);
}

std::string_view next_line(std::string_view& text) {
  const size_t end = std::min(text.find('\n'), text.size());
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return line;
}

std::string_view next_word(std::string_view& text) {
  const size_t begin = std::min(text.find_first_not_of(" \t"), text.size());
  text.remove_prefix(begin);
  const size_t end = std::min(text.find_first_of(" \t"), text.size());
  const std::string_view word = text.substr(0, end);
  text.remove_prefix(end);
  return word;
}

template <typename T>
T to_number(std::string_view word, int base = 10) {
  T value{};
  std::from_chars(word.data(), word.data() + word.size(), value, base);
  return value;
}

// Blanks and the like in names are written as \040.
std::string without_escapes(std::string_view word) {
  std::string text;
  while (!word.empty()) {
    unsigned letter = 0;
    const std::string_view digits = word.substr(1, 3);
    const bool escaped = word[0] == '\\' && !digits.empty() &&
                         std::from_chars(digits.data(), digits.data() + digits.size(), letter, 8).ec == std::errc();
    text += escaped ? static_cast<char>(letter) : word[0];
    word.remove_prefix(std::min<size_t>(escaped ? 4 : 1, word.size()));
  }
  return text;
}

template <typename T>
std::vector<T> numbers(std::string_view text) {
  std::vector<T> values;
  for (std::string_view word = next_word(text); !word.empty(); word = next_word(text))
    values.push_back(to_number<T>(word));
  return values;
}

template <typename T, size_t N>
std::array<T, N> first_numbers(std::string_view text) {
  const std::vector<T> all = numbers<T>(text);
  std::array<T, N> values{};
  std::copy_n(all.begin(), std::min(N, all.size()), values.begin());
  return values;
}

// "7f0a-7f0b r-xp 00001000 fe:01 1234   /path"
MapsEntry parse_maps_line(std::string_view line) {
  MapsEntry entry;
  const std::string_view range = next_word(line);
  const size_t dash = std::min(range.find('-'), range.size());
  entry.start = to_number<uint64_t>(range.substr(0, dash), 16);
  if (dash < range.size()) entry.end = to_number<uint64_t>(range.substr(dash + 1), 16);
  const std::string_view permissions = next_word(line);
  const auto permission = [&](size_t at, char value) { return permissions.size() > at && permissions[at] == value; };
  entry.readable = permission(0, 'r');
  entry.writable = permission(1, 'w');
  entry.executable = permission(2, 'x');
  entry.shared = permission(3, 's');
  entry.offset = to_number<uint64_t>(next_word(line), 16);
  const std::string_view device = next_word(line);
  const size_t colon = std::min(device.find(':'), device.size());
  entry.dev_major = to_number<uint32_t>(device.substr(0, colon), 16);
  if (colon < device.size()) entry.dev_minor = to_number<uint32_t>(device.substr(colon + 1), 16);
  entry.ino = to_number<uint64_t>(next_word(line));
  line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
  if (line.ends_with(kDeleted)) {
    entry.deleted = true;
    line.remove_suffix(kDeleted.size());
  }
  entry.path = line;
  return entry;
}

// smaps' own lines start with a capital ("Size:", "VmFlags:"), a mapping's with a hexadecimal digit in lower case.
bool starts_mapping(std::string_view line) {
  return !line.empty() && ((line[0] >= '0' && line[0] <= '9') || (line[0] >= 'a' && line[0] <= 'f'));
}

void parse_status_line(std::string_view key, std::string_view value, ProcStatus& status) {
  const auto hex = [&](std::string_view text) { return to_number<uint64_t>(next_word(text), 16); };
  const auto decimal = [&](std::string_view text) { return to_number<int64_t>(next_word(text)); };
  if (key == "Uid")
    status.uid = first_numbers<uid_t, 4>(value);
  else if (key == "Gid")
    status.gid = first_numbers<gid_t, 4>(value);
  else if (key == "Groups")
    status.groups = numbers<gid_t>(value);
  else if (key == "Tgid")
    status.tgid = static_cast<pid_t>(decimal(value));
  else if (key == "PPid")
    status.ppid = static_cast<pid_t>(decimal(value));
  else if (key == "TracerPid")
    status.tracer = static_cast<pid_t>(decimal(value));
  else if (key == "NSpid")
    status.ns_pid = numbers<pid_t>(value);
  else if (key == "NStgid")
    status.ns_tgid = numbers<pid_t>(value);
  else if (key == "NSpgid")
    status.ns_pgid = numbers<pid_t>(value);
  else if (key == "NSsid")
    status.ns_sid = numbers<pid_t>(value);
  else if (key == "Umask")
    status.umask = to_number<uint32_t>(next_word(value), 8);
  else if (key == "Seccomp")
    status.seccomp = static_cast<int>(decimal(value));
  else if (key == "NoNewPrivs")
    status.no_new_privs = decimal(value) != 0;
  else if (key == "SigPnd")
    status.sig_pending = hex(value);
  else if (key == "ShdPnd")
    status.shd_pending = hex(value);
  else if (key == "SigBlk")
    status.sig_blocked = hex(value);
  else if (key == "SigIgn")
    status.sig_ignored = hex(value);
  else if (key == "SigCgt")
    status.sig_caught = hex(value);
  else if (key == "CapInh")
    status.cap_inh = hex(value);
  else if (key == "CapPrm")
    status.cap_prm = hex(value);
  else if (key == "CapEff")
    status.cap_eff = hex(value);
  else if (key == "CapBnd")
    status.cap_bnd = hex(value);
  else if (key == "CapAmb")
    status.cap_amb = hex(value);
  else if (key == "VmRSS")
    status.vm_rss_kib = static_cast<uint64_t>(decimal(value));
  else if (key == "VmLck")
    status.locked_kb = static_cast<uint64_t>(decimal(value));
}

}  // namespace

std::string read_proc(pid_t pid, std::string_view name) {
  const UniqueFd fd(::open(proc_path(pid, name).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) throw_proc(pid, name);
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_proc(pid, name);
    if (got == 0) return text;
    text.append(buffer, static_cast<size_t>(got));
  }
}

std::string read_proc_link(pid_t pid, std::string_view name) {
  char buffer[PATH_MAX];
  const ssize_t got = ::readlink(proc_path(pid, name).c_str(), buffer, sizeof buffer);
  if (got < 0) throw_proc(pid, name);
  return {buffer, static_cast<size_t>(got)};
}

namespace {

std::optional<std::vector<int>> numbers_in(const std::string& path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  if (!dir) return std::nullopt;
  std::vector<int> values;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string_view name = entry->d_name;
    int value = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), value);
    if (error == std::errc() && end == name.data() + name.size()) values.push_back(value);
  }
  std::sort(values.begin(), values.end());
  return values;
}

}  // namespace

std::vector<int> list_proc_numbers(pid_t pid, std::string_view directory) {
  auto values = numbers_in(proc_path(pid, directory));
  if (!values) throw_proc(pid, directory);
  return *values;
}

std::vector<pid_t> list_processes() {
  auto values = numbers_in("/proc");
  if (!values) throw_errno("cannot list /proc");
  return *values;
}

ProcStatus ProcStatus::parse(std::string_view text) {
  ProcStatus status;
  while (!text.empty()) {
    const std::string_view line = next_line(text);
    const size_t colon = line.find(':');
    if (colon != std::string_view::npos) parse_status_line(line.substr(0, colon), line.substr(colon + 1), status);
  }
  return status;
}

ProcStatus ProcStatus::read(pid_t pid) { return parse(read_proc(pid, "status")); }

ProcStat ProcStat::parse(std::string_view text) {
  ProcStat stat;
  // The name may hold blanks and parentheses: it ends at the last one.
  const size_t open = text.find('('), close = text.rfind(')');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) return stat;
  stat.comm = text.substr(open + 1, close - open - 1);
  std::string_view rest = text.substr(close + 1);
  std::vector<std::string_view> field;  // field[0] is number 3 of proc(5)
  for (std::string_view word = next_word(rest); !word.empty(); word = next_word(rest)) field.push_back(word);
  const auto number = [&](size_t proc5) {
    return field.size() > proc5 - 3 ? to_number<uint64_t>(field[proc5 - 3]) : uint64_t{0};
  };
  const auto signed_number = [&](size_t proc5) {
    return field.size() > proc5 - 3 ? to_number<int>(field[proc5 - 3]) : 0;
  };
  if (!field.empty()) stat.state = field[0][0];
  stat.ppid = signed_number(4);
  stat.pgrp = signed_number(5);
  stat.session = signed_number(6);
  stat.tty_nr = signed_number(7);
  stat.tty_foreground = signed_number(8);
  stat.cpu_ticks = number(14) + number(15);
  stat.threads = number(20);
  stat.start_time_ticks = number(22);
  stat.start_code = number(26);
  stat.end_code = number(27);
  stat.start_stack = number(28);
  stat.exit_signal = signed_number(38);
  stat.start_data = number(45);
  stat.end_data = number(46);
  stat.start_brk = number(47);
  stat.arg_start = number(48);
  stat.arg_end = number(49);
  stat.env_start = number(50);
  stat.env_end = number(51);
  stat.exit_code = signed_number(52);
  return stat;
}

ProcStat ProcStat::read(pid_t pid) { return parse(read_proc(pid, "stat")); }

std::vector<MountEntry> MountEntry::read(pid_t pid) { return parse(read_proc(pid, "mountinfo")); }

// "29 22 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct" (proc_pid_mountinfo(5)).
std::vector<MountEntry> MountEntry::parse(std::string_view rest) {
  std::vector<MountEntry> entries;
  while (!rest.empty()) {
    std::string_view line = next_line(rest);
    next_word(line);  // its number
    next_word(line);  // its parent's
    const std::string_view device = next_word(line);
    const size_t colon = device.find(':');
    if (colon == std::string_view::npos) continue;
    MountEntry& entry = entries.emplace_back();
    entry.dev_major = to_number<uint32_t>(device.substr(0, colon));
    entry.dev_minor = to_number<uint32_t>(device.substr(colon + 1));
    entry.root = without_escapes(next_word(line));
    entry.point = without_escapes(next_word(line));
    for (std::string_view word = next_word(line); !word.empty() && word != "-";) word = next_word(line);
    entry.type = next_word(line);
    entry.source = next_word(line);
    entry.options = next_word(line);
  }
  return entries;
}

std::vector<CgroupEntry> CgroupEntry::read(pid_t pid) { return parse(read_proc(pid, "cgroup")); }

std::vector<CgroupEntry> CgroupEntry::parse(std::string_view rest) {
  std::vector<CgroupEntry> entries;
  while (!rest.empty()) {
    const std::string_view line = next_line(rest);
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string_view::npos || second == std::string_view::npos) continue;
    entries.push_back({std::string(line.substr(first + 1, second - first - 1)), std::string(line.substr(second + 1))});
  }
  return entries;
}

std::vector<MapsEntry> MapsEntry::read(pid_t pid) {
  const std::string text = read_proc(pid, "maps");
  std::vector<MapsEntry> entries;
  for (std::string_view rest = text; !rest.empty();) entries.push_back(parse_maps_line(next_line(rest)));
  return entries;
}

bool SmapsEntry::has(std::string_view flag) const {
  return std::find(vm_flags.begin(), vm_flags.end(), flag) != vm_flags.end();
}

std::vector<SmapsEntry> SmapsEntry::read(pid_t pid) { return parse(read_proc(pid, "smaps")); }

std::vector<SmapsEntry> SmapsEntry::parse(std::string_view rest) {
  std::vector<SmapsEntry> entries;
  while (!rest.empty()) {
    std::string_view line = next_line(rest);
    if (starts_mapping(line)) {
      entries.push_back({parse_maps_line(line), {}, 0});
    } else if (line.starts_with("ProtectionKey:") && !entries.empty()) {
      line.remove_prefix(14);
      entries.back().protection_key = to_number<int>(next_word(line));
    } else if (line.starts_with("VmFlags:") && !entries.empty()) {
      line.remove_prefix(8);
      for (std::string_view word = next_word(line); !word.empty(); word = next_word(line))
        entries.back().vm_flags.emplace_back(word);
    }
  }
  return entries;
}

std::vector<pid_t> read_children_of_thread(pid_t pid, pid_t tid) {
  try {
    return numbers<pid_t>(read_proc(pid, fmt::format("task/{}/children", tid)));
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kGone) throw;
    return {};
  }
}

std::vector<pid_t> read_children(pid_t pid) {
  std::vector<pid_t> children;
  for (const int tid : list_proc_numbers(pid, "task"))
    for (const pid_t child : read_children_of_thread(pid, tid)) children.push_back(child);
  return children;
}

}  // namespace icp
