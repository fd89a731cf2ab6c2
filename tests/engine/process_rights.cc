// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/engine/process_rights.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/ioprio.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"

namespace icp::test {
namespace {

std::string text_of(pid_t pid, const char* name) { return read_proc(pid, name); }

int cpus_of(pid_t tid) {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(tid, sizeof set, &set) == 0 ? CPU_COUNT(&set) : -1;
}

int number_in(const char* path) {
  std::ifstream in(path);
  int number = 0;
  in >> number;
  return number;
}

// A descriptor of another process's.
UniqueFd steal(pid_t pid, int fd) {
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  return UniqueFd(process ? static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), fd, 0)) : -1);
}

int option_of(int fd, int name) {
  int value = 0;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0 ? value : 0;
}

void check_descriptor(pid_t pid, int number) {
  const UniqueFd fd = steal(pid, number);
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0) return;
  if (S_ISFIFO(status.st_mode)) {
    EXPECT_LE(::fcntl(fd.get(), F_GETPIPE_SZ), number_in("/proc/sys/fs/pipe-max-size"));
  }
  if (!S_ISSOCK(status.st_mode)) return;
  // The kernel doubles what is asked for; TCP takes more by itself.
  std::ifstream tcp_read("/proc/sys/net/ipv4/tcp_rmem"), tcp_write("/proc/sys/net/ipv4/tcp_wmem");
  int least = 0, normal = 0, most_read = 0, most_written = 0;
  tcp_read >> least >> normal >> most_read;
  tcp_write >> least >> normal >> most_written;
  EXPECT_LE(option_of(fd.get(), SO_RCVBUF), std::max(2 * number_in("/proc/sys/net/core/rmem_max"), most_read));
  EXPECT_LE(option_of(fd.get(), SO_SNDBUF), std::max(2 * number_in("/proc/sys/net/core/wmem_max"), most_written));
  EXPECT_LE(option_of(fd.get(), SO_PRIORITY), 6);
  EXPECT_EQ(option_of(fd.get(), SO_MARK), 0);
  EXPECT_EQ(option_of(fd.get(), SO_DEBUG), 0);
}

void check_thread(pid_t pid, pid_t tid, uid_t uid, const Rights& fresh) {
  const std::string prefix = "task/" + std::to_string(tid) + "/status";
  const ProcStatus status = ProcStatus::parse(read_proc(pid, prefix));
  for (const uid_t id : status.uid) EXPECT_EQ(id, uid);
  for (const gid_t id : status.gid) EXPECT_EQ(id, uid);
  for (const gid_t group : status.groups) EXPECT_TRUE(group == uid || fresh.groups.contains(group)) << group;
  EXPECT_EQ(status.cap_prm | status.cap_eff | status.cap_inh | status.cap_amb, 0u);
  EXPECT_EQ(status.cap_bnd & ~fresh.cap_bounding, 0u);
  EXPECT_TRUE(status.no_new_privs);
  const int policy = ::sched_getscheduler(tid) & ~SCHED_RESET_ON_FORK;
  EXPECT_TRUE(policy == SCHED_OTHER || policy == SCHED_BATCH || policy == SCHED_IDLE) << policy;
  EXPECT_GE(::getpriority(PRIO_PROCESS, static_cast<id_t>(tid)), fresh.nice);
  const long ioprio = ::syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid);
  EXPECT_NE(IOPRIO_PRIO_CLASS(ioprio), IOPRIO_CLASS_RT);
  EXPECT_LE(cpus_of(tid), fresh.cpus);
}

void check_process(pid_t pid, uid_t uid, const Rights& fresh) {
  const Rights rights = rights_of(pid);
  for (const auto& [resource, limit] : rights.limits) {
    EXPECT_LE(limit.rlim_max, fresh.limits.at(resource).rlim_max) << "limit " << resource;
    EXPECT_LE(limit.rlim_cur, fresh.limits.at(resource).rlim_max) << "limit " << resource;
  }
  EXPECT_GE(rights.oom_score_adj, fresh.oom_score_adj);
  const ProcStatus status = ProcStatus::read(pid);
  EXPECT_LE(status.locked_kb * 1024, fresh.limits.at(RLIMIT_MEMLOCK).rlim_max);
  const std::vector<MapsEntry> maps = MapsEntry::read(pid);
  const auto least = static_cast<uint64_t>(number_in("/proc/sys/vm/mmap_min_addr"));
  if (!maps.empty()) {
    EXPECT_GE(maps.front().start, least);
  }
  for (const int tid : list_proc_numbers(pid, "task")) check_thread(pid, tid, uid, fresh);
  for (const int fd : list_proc_numbers(pid, "fd")) check_descriptor(pid, fd);
}

}  // namespace

Rights rights_of(pid_t pid) {
  Rights rights;
  for (int resource = 0; resource < RLIM_NLIMITS; resource++)
    ::prlimit(pid, static_cast<__rlimit_resource>(resource), nullptr, &rights.limits[resource]);
  const ProcStatus status = ProcStatus::read(pid);
  rights.groups = {status.groups.begin(), status.groups.end()};
  rights.oom_score_adj = std::atoi(text_of(pid, "oom_score_adj").c_str());
  rights.nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(pid));
  rights.cpus = cpus_of(pid);
  rights.cap_bounding = status.cap_bnd;
  return rights;
}

void check_rights_of_tree(pid_t pid, uid_t uid, const Rights& fresh) {
  try {
    check_process(pid, uid, fresh);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kGone) throw;  // what was restored may end at once
    return;
  }
  for (const pid_t child : read_children(pid)) check_rights_of_tree(child, uid, fresh);
}

}  // namespace icp::test
