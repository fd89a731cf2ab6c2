// SPDX-License-Identifier: GPL-2.0-or-later
// How a process becomes a worker with a broker.
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "engine/base/error.h"
#include "engine/base/socket_pair.h"
#include "engine/broker/broker_impl.h"
#include "engine/broker/rights.h"

namespace icp {
namespace {

// What no worker has a use for, and what a fault of the kernel might be reached through. Namespaces, mounts, modules,
// clocks, keys and events are the broker's or nobody's.
constexpr const char* kForbidden[] = {"acct",           "add_key",         "adjtimex",       "bpf",
                                      "chroot",         "clock_adjtime",   "clock_settime",  "delete_module",
                                      "finit_module",   "fsconfig",        "fsmount",        "fsopen",
                                      "fspick",         "init_module",     "io_uring_enter", "io_uring_register",
                                      "io_uring_setup", "ioperm",          "iopl",           "kexec_file_load",
                                      "kexec_load",     "keyctl",          "lookup_dcookie", "mount",
                                      "mount_setattr",  "move_mount",      "nfsservctl",     "open_by_handle_at",
                                      "open_tree",      "perf_event_open", "pivot_root",     "quotactl",
                                      "quotactl_fd",    "reboot",          "request_key",    "setdomainname",
                                      "sethostname",    "setns",           "settimeofday",   "swapoff",
                                      "swapon",         "syslog",          "umount2",        "uselib",
                                      "vhangup"};
constexpr uint64_t kNamespaces =
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;

void filter_system_calls() {
  const scmp_filter_ctx filter = ::seccomp_init(SCMP_ACT_ALLOW);
  if (filter == nullptr) throw_error(ErrorKind::kSystem, "no memory for a filter of system calls");
  int failed = 0;
  for (const char* name : kForbidden) {
    const int number = ::seccomp_syscall_resolve_name(name);
    if (number >= 0)
      failed |= ::seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), number, 0);  // else: newer than libseccomp
  }
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t flag = kNamespaces & 1ull << bit;
    if (flag != 0) {
      failed |= ::seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(unshare), 1,
                                   SCMP_A0(SCMP_CMP_MASKED_EQ, flag, flag));
      failed |= ::seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1,
                                   SCMP_A0(SCMP_CMP_MASKED_EQ, flag, flag));
    }
  }
  // Its flags lie in memory, where a filter cannot see them; the C library then takes clone.
  failed |= ::seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
  if (failed == 0) failed = ::seccomp_load(filter);
  ::seccomp_release(filter);
  if (failed != 0) throw_error(ErrorKind::kSystem, "cannot set a filter of system calls");
}

[[noreturn]] void be_broker(UniqueFd socket, const BrokerOptions& options, pid_t worker) {
  ::prctl(PR_SET_NAME, "icp-broker");
  ::prctl(PR_SET_DUMPABLE, 0);
  for (const int fd : options.not_for_broker) ::close(fd);
  // A key on the terminal is for the program; the broker ends with its worker.
  ::setsid();
  // Helpers end by themselves, and nobody waits for them.
  ::signal(SIGCHLD, SIG_IGN);
  sigset_t all;
  sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  serve_broker(socket.get(), options, worker);
  ::_exit(0);
}

}  // namespace

std::string default_init_program() {
  std::error_code error;
  const std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  // In the build, and as it was installed, also where that was moved to.
  for (const std::filesystem::path& path : {here / "icp-init", here.parent_path() / "libexec/slurm-icp/icp-init"})
    if (!here.empty() && std::filesystem::exists(path, error)) return path;
  return ICP_LIBEXEC_DIR "/icp-init";
}

void become_worker(BrokerOptions options) {
  if (::geteuid() != 0) return;
  if (options.identity.uid == 0) {
    set_broker(make_direct_broker(std::move(options)));
    return;
  }
  SocketPair ends(SOCK_STREAM);
  const pid_t worker = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) throw_errno("cannot start the broker");
  if (pid == 0) {
    ends.here.reset();
    be_broker(std::move(ends.there), options, worker);
  }
  ends.there.reset();
  if (options.address_space != 0) {
    const rlimit limit{options.address_space, options.address_space};
    ::setrlimit(RLIMIT_AS, &limit);
  }
  int death_signal = 0;
  ::prctl(PR_GET_PDEATHSIG, &death_signal);
  constexpr uint64_t kKept = 1ull << kCheckpointRestore;
  if (const char* what = take_identity(options.identity, kKept, false); what != nullptr) throw_errno("cannot {}", what);
  if (death_signal != 0) ::prctl(PR_SET_PDEATHSIG, death_signal);  // the change of ids has cleared it
  // Its memory counts as the job's: where that is scarce, a version is lost rather than a process of the job.
  std::ofstream("/proc/self/oom_score_adj") << 1000;
  filter_system_calls();
  check_identity(options.identity, kKept);
  set_broker(make_broker_client(std::move(ends.here)));
}

}  // namespace icp
