// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/process_check.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <sstream>

#include "engine/base/error.h"
#include "engine/base/identity.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"
#include "engine/broker/broker.h"
#include "engine/process/attributes.h"
#include "engine/process/credentials.h"
#include "engine/process/numa_mappings.h"
#include "engine/process/thread_check.h"
#include "engine/process/timers.h"
#include "engine/restore/tree_plan.h"

namespace icp {
namespace {

// Kernels before 5.6, or built without them, have no time namespaces.
std::string time_namespace(pid_t pid, const char* name) {
  try {
    return read_proc_link(pid, name);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kGone) throw;
    return {};
  }
}

// The user namespace that a restart without root makes: it has the user's own ids and no others.
bool is_of_a_restart(pid_t pid) {
  const auto holds_only = [pid](const char* map, unsigned id) {
    std::istringstream text(read_proc(pid, map));
    unsigned inside = 0, outside = 0, count = 0, more = 0;
    return (text >> inside >> outside >> count) && !(text >> more) && inside == id && outside == id && count == 1;
  };
  return !broker().privileged() && holds_only("uid_map", ::geteuid()) && holds_only("gid_map", ::getegid());
}

void check_namespaces(const ProcessRef& process, const ProcessRef& first, Findings& findings) {
  for (const char* name : {"mnt", "net", "uts", "ipc", "pid", "cgroup", "user"}) {
    const std::string link = fmt::format("ns/{}", name);
    if (read_proc_link(process.pid, link) != read_proc_link(first.pid, link))
      findings.push_back({process.pid, process.comm, "",
                          fmt::format("is in another {} namespace than process {}", name, first.pid),
                          "run the job without containers of its own inside"});
  }
  if (read_proc_link(process.pid, "ns/user") != read_proc_link(::getpid(), "ns/user") && !is_of_a_restart(process.pid))
    findings.push_back({process.pid, process.comm, "", "is in a user namespace of its own",
                        "run the job without unprivileged containers"});
  if (read_proc_link(process.pid, "ns/pid") != read_proc_link(process.pid, "ns/pid_for_children"))
    findings.push_back({process.pid, process.comm, "", "makes its children in another pid namespace",
                        "run the job without containers of its own inside"});
  // The restored process will be in the agent's.
  const std::string time = time_namespace(::getpid(), "ns/time");
  if (time_namespace(process.pid, "ns/time") != time || time_namespace(process.pid, "ns/time_for_children") != time)
    findings.push_back({process.pid, process.comm, "",
                        "is in a time namespace of its own, or makes its children in one",
                        "run the job without containers of its own inside"});
  if (process.vpid == 1)
    findings.push_back(
        {process.pid, process.comm, "", "is the init of its pid namespace", "name its children instead (--pid)"});
}

// Whether the process's user may read a file with this mode (for lists of access rights, see may_open()).
bool may_read(const ProcStatus& status, const struct stat& file) {
  const bool in_group = status.gid[3] == file.st_gid ||
                        std::find(status.groups.begin(), status.groups.end(), file.st_gid) != status.groups.end();
  if (status.uid[3] == 0) return true;
  if (status.uid[3] == file.st_uid) return (file.st_mode & S_IRUSR) != 0;
  return (file.st_mode & (in_group ? S_IRGRP : S_IROTH)) != 0;
}

bool may_open(const ProcStatus& status, const std::string& path) {
  const FsIdentity as_user({status.uid[3], status.gid[3], status.groups});
  return static_cast<bool>(UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)));
}

// The program is mapped again at a restart, which takes the right to read it. Its content in the image would give that
// right to who has the image.
void check_readable(const ProcessRef& process, Findings& findings) {
  struct stat file {};
  if (::stat(fmt::format("/proc/{}/exe", process.pid).c_str(), &file) != 0) return;
  const ProcStatus status = ProcStatus::read(process.pid);
  const std::string path = read_proc_link(process.pid, "exe");
  if (may_read(status, file) || may_open(status, path)) return;
  findings.push_back({process.pid, process.comm, "program " + path,
                      fmt::format("may not be read by the user who runs it (mode {:04o})", file.st_mode & 07777),
                      "let its users read it (chmod a+r)"});
}

void check_program(const ProcessRef& process, Findings& findings) {
  check_readable(process, findings);
  const UniqueFd exe(::open(fmt::format("/proc/{}/exe", process.pid).c_str(), O_RDONLY | O_CLOEXEC));
  std::array<unsigned char, EI_NIDENT> header{};
  if (!exe || ::pread(exe.get(), header.data(), header.size(), 0) != static_cast<ssize_t>(header.size())) return;
  if (header[EI_CLASS] != ELFCLASS64)
    findings.push_back({process.pid, process.comm, "", "is a 32-bit program", "use a 64-bit build of it"});
}

// Nothing else can be read of such a process.
bool check_main_thread(const ProcessRef& process, Findings& findings) {
  const ProcStat leader = ProcStat::parse(read_proc(process.pid, fmt::format("task/{}/stat", process.pid)));
  if (leader.state != 'Z') return true;
  findings.push_back(
      {process.pid, process.comm, "", "its main thread has ended while others run", "let main() wait for its threads"});
  return false;
}

// Processes that share something. A child comes back with what it shares with its parent since clone(2) made it so, but
// for memory: vfork() and posix_spawn() share that until the child has called exec, a transient moment.
void check_shared(const std::vector<ProcessRef>& processes, Findings& findings) {
  std::set<pid_t> found;
  for (const auto& [kind, what] :
       {std::pair{KCMP_VM, "memory"}, {KCMP_FILES, "descriptor table"}, {KCMP_FS, "working directory"}}) {
    const auto compare = [kind = kind](pid_t one, pid_t other) { return ::syscall(SYS_kcmp, one, other, kind, 0, 0); };
    const auto before = [&](const ProcessRef* one, const ProcessRef* other) {
      return compare(one->pid, other->pid) == 1;
    };
    std::set<const ProcessRef*, decltype(before)> owners(before);  // in the kernel's order
    for (const ProcessRef& process : processes) {
      if (process.zombie) continue;
      const auto [owner, is_new] = owners.insert(&process);
      if (is_new || compare((*owner)->pid, process.pid) != 0) continue;
      if (kind != KCMP_VM && compare(process.pid, process.ppid) == 0) continue;
      if (!found.insert(process.pid).second) continue;
      const bool transient = kind == KCMP_VM;
      findings.push_back({process.pid, process.comm, "",
                          fmt::format("shares its {} with process {}{}", what, (*owner)->pid,
                                      transient ? " (a vfork under way?)" : ", and not with its parent"),
                          transient ? "try again in a moment" : "make it a child of the one it shares with",
                          transient});
    }
  }
}

void describe(const ProcessRef& process, const ProcStat& stat, const ProcStatus& status,
              const std::map<pid_t, pid_t>& vpids, pb::Capsule& capsule) {
  const auto parent = vpids.find(status.ppid);
  const auto innermost = [](const std::vector<pid_t>& ids, pid_t fallback) {
    return static_cast<uint32_t>(ids.empty() ? fallback : ids.back());
  };
  pb::Process& state = *capsule.add_processes();
  state.set_pid(static_cast<uint32_t>(process.vpid));
  state.set_ppid(parent == vpids.end() ? 1 : static_cast<uint32_t>(parent->second));
  // A zombie has no NS lines left: its numbers in the agent's namespace are the capsule's unless that is another one.
  state.set_pgid(innermost(status.ns_pgid, stat.pgrp));
  state.set_sid(innermost(status.ns_sid, stat.session));
  state.set_comm(stat.comm);
  state.set_exit_signal(stat.exit_signal);
  if (process.zombie) {
    state.set_state(pb::Process::ZOMBIE);
    state.set_exit_status(stat.exit_code);
  }
}

}  // namespace

void check_processes(const std::vector<ProcessRef>& processes, Findings& findings) {
  const ProcessRef* first = nullptr;
  for (const ProcessRef& process : processes) {
    if (process.zombie) continue;
    try {
      if (!check_main_thread(process, findings)) continue;
      if (first == nullptr) first = &process;
      check_credentials(process, findings);
      check_attributes(process, findings);
      check_namespaces(process, *first, findings);
      check_program(process, findings);
      check_timers(process, findings);
      note_numa_mappings(process);
      check_thread_states(process, ProcStatus::read(process.pid), findings);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
    }
  }
  check_shared(processes, findings);
  try {
    pb::Capsule capsule;
    describe_tree(processes, capsule);
    plan_tree(capsule);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kGone) return;
    const ProcessRef& root = processes.front();
    const bool changing = error.kind() == ErrorKind::kImage;
    findings.push_back({root.pid, root.comm, "process tree", error.what(),
                        changing ? "try again in a moment" : "end it before the checkpoint, or start it with setsid",
                        changing});
  }
}

void describe_tree(const std::vector<ProcessRef>& processes, pb::Capsule& capsule) {
  std::map<pid_t, pid_t> vpids;
  for (const ProcessRef& process : processes) vpids[process.pid] = process.vpid;
  for (const ProcessRef& process : processes)
    describe(process, ProcStat::read(process.pid), ProcStatus::read(process.pid), vpids, capsule);
}

void describe_tree(const std::vector<StoppedProcess>& processes, pb::Capsule& capsule) {
  std::map<pid_t, pid_t> vpids;
  for (const StoppedProcess& process : processes) vpids[process.ref.pid] = process.ref.vpid;
  for (const StoppedProcess& process : processes) {
    if (process.ref.zombie) {
      describe(process.ref, ProcStat::read(process.ref.pid), ProcStatus::read(process.ref.pid), vpids, capsule);
    } else {
      describe(process.ref, process.stat, process.status, vpids, capsule);
    }
  }
}

}  // namespace icp
