// SPDX-License-Identifier: GPL-2.0-or-later
// Readers for /proc files (proc(5)). All throw Error: kGone when the process has ended, kSystem otherwise.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace icp {

// What the kernel puts after the path of what has been removed.
inline constexpr std::string_view kDeleted = " (deleted)";

// Whole text of /proc/PID/NAME; `name` may hold slashes ("task/12/stat").
std::string read_proc(pid_t pid, std::string_view name);
// Target of the link /proc/PID/NAME.
std::string read_proc_link(pid_t pid, std::string_view name);
// Numeric entries of a /proc directory, ascending: "task", "fd", "map_files" gives none.
std::vector<int> list_proc_numbers(pid_t pid, std::string_view directory);
// All processes, ascending.
std::vector<pid_t> list_processes();

struct ProcStatus {
  std::array<uid_t, 4> uid{};  // real, effective, saved, fs
  std::array<gid_t, 4> gid{};
  std::vector<gid_t> groups;
  pid_t tgid = 0;
  pid_t ppid = 0;
  pid_t tracer = 0;
  std::vector<pid_t> ns_pid, ns_tgid, ns_pgid, ns_sid;  // outermost namespace first
  uint32_t umask = 0;
  int seccomp = 0;  // 0 none, 1 strict, 2 filter
  bool no_new_privs = false;
  uint64_t sig_pending = 0, shd_pending = 0, sig_blocked = 0, sig_ignored = 0, sig_caught = 0;
  uint64_t cap_inh = 0, cap_prm = 0, cap_eff = 0, cap_bnd = 0, cap_amb = 0;
  uint64_t vm_rss_kib = 0, locked_kb = 0;

  static ProcStatus read(pid_t pid);
  static ProcStatus parse(std::string_view text);
};

struct ProcStat {
  std::string comm;
  char state = '?';
  pid_t ppid = 0, pgrp = 0, session = 0;
  int tty_nr = 0;                 // new_encode_dev() of the kernel; 0: none
  pid_t tty_foreground = 0;       // that terminal's foreground group
  uint64_t start_time_ticks = 0;  // since boot: tells two users of one pid apart
  uint64_t cpu_ticks = 0;         // in user and kernel mode
  uint64_t start_code = 0, end_code = 0, start_stack = 0;
  uint64_t start_data = 0, end_data = 0, start_brk = 0, arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
  size_t threads = 0;
  int exit_signal = 0;
  int exit_code = 0;  // wait(2) status, set for a zombie

  static ProcStat read(pid_t pid);
  static ProcStat parse(std::string_view text);
};

// One line of /proc/PID/mountinfo.
struct MountEntry {
  uint32_t dev_major = 0, dev_minor = 0;
  std::string root, point;            // within its file system, and where it is mounted
  std::string type, source, options;  // of the file system: "ext4", "/dev/sda1", "rw,relatime"

  static std::vector<MountEntry> read(pid_t pid);
  static std::vector<MountEntry> parse(std::string_view text);  // lines without a device are left out
};

// One line of /proc/PID/cgroup (cgroups(7)).
struct CgroupEntry {
  std::string controllers;  // "cpu,cpuacct", "name=systemd"; empty: version 2
  std::string path;

  static std::vector<CgroupEntry> read(pid_t pid);
  static std::vector<CgroupEntry> parse(std::string_view text);
};

// One line of /proc/PID/maps.
struct MapsEntry {
  uint64_t start = 0, end = 0, offset = 0;
  bool readable = false, writable = false, executable = false, shared = false;
  uint32_t dev_major = 0, dev_minor = 0;
  uint64_t ino = 0;
  std::string path;  // "", "[heap]", "/usr/lib/x.so", with " (deleted)" taken off into `deleted`
  bool deleted = false;

  static std::vector<MapsEntry> read(pid_t pid);
};

// One entry of /proc/PID/smaps: maps plus the two-letter VmFlags, for example "rd wr mr mw me gd ac".
struct SmapsEntry : MapsEntry {
  std::vector<std::string> vm_flags;
  int protection_key = 0;
  bool has(std::string_view flag) const;

  static std::vector<SmapsEntry> read(pid_t pid);
  static std::vector<SmapsEntry> parse(std::string_view text);
};

// Children (processes) of all threads of `pid`, the caller's view of pids.
std::vector<pid_t> read_children(pid_t pid);
// Those that one thread of it made; none when the thread has ended.
std::vector<pid_t> read_children_of_thread(pid_t pid, pid_t tid);

}  // namespace icp
