// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/broker/operations.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/nsfs.h>
#include <linux/sched.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "engine/base/error.h"
#include "engine/base/own_ids.h"
#include "engine/base/procfs.h"
#include "engine/base/socket_pair.h"
#include "engine/broker/child_call.h"
#include "engine/broker/rights.h"
#include "engine/broker/tcp_queue.h"
#include "engine/sysv/ipc_namespace.h"

namespace icp::privileged {
namespace {

constexpr int kChannelFd = 3, kCarrierFd = 4;  // as icp-init finds them
constexpr unsigned kCloseAtExec = 1u << 2;     // CLOSE_RANGE_CLOEXEC of linux/close_range.h

// ---- icp-init ----------------------------------------------------------------------------------------------------

struct Limits {
  std::array<rlimit, RLIM_NLIMITS> values{};
  std::array<bool, RLIM_NLIMITS> known{};
};

std::string read_limits(int process) {
  const UniqueFd file(::openat(process, "limits", O_RDONLY | O_CLOEXEC));
  std::array<char, 8192> text;
  const ssize_t got = file ? ::read(file.get(), text.data(), text.size()) : -1;
  if (got <= 0) throw_error(ErrorKind::kGone, "a process of the step has ended");
  return {text.data(), static_cast<size_t>(got)};
}

// /proc/PID/limits, since prlimit(2) wants CAP_SYS_RESOURCE for another user's process. The rows are in the order of
// the constants in fs/proc/base.c, lnames[].
Limits limits_of(int process) {
  static constexpr std::array<const char*, RLIM_NLIMITS> kNames = {
      "Max cpu time",       "Max file size",     "Max data size",         "Max stack size",
      "Max core file size", "Max resident set",  "Max processes",         "Max open files",
      "Max locked memory",  "Max address space", "Max file locks",        "Max pending signals",
      "Max msgqueue size",  "Max nice priority", "Max realtime priority", "Max realtime timeout"};
  Limits limits;
  std::istringstream text(read_limits(process));
  for (std::string line; std::getline(text, line);) {
    for (size_t i = 0; i < kNames.size(); ++i) {
      if (!line.starts_with(kNames[i])) continue;
      std::istringstream words(line.substr(std::strlen(kNames[i])));
      std::string soft, hard;
      words >> soft >> hard;
      const auto value = [](const std::string& word) {
        return word == "unlimited" ? RLIM_INFINITY : static_cast<rlim_t>(std::stoull(word));
      };
      limits.values[i] = {value(soft), value(hard)};
      limits.known[i] = true;
    }
  }
  return limits;
}

// What the new process needs, got ready before: between clone and exec it makes system calls only.
struct InitPlan {
  const InitOrder& order;
  Limits limits;
  std::vector<std::pair<std::string, std::string>> ipc_limits;  // file and text
  int go = -1;
  uint64_t bounding = 0;  // the capabilities of the caller's bounding set
};

[[noreturn]] void fail(const char* what) {
  char line[128];
  const int length = std::snprintf(line, sizeof line, "E%d %s\n", errno, what);
  ::send(kChannelFd, line, static_cast<size_t>(length), MSG_NOSIGNAL);
  ::_exit(1);
}

void write_file(const std::string& path, const std::string& text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;  // a value the kernel does not take is left as it was
  static_cast<void>(!::write(fd, text.data(), text.size()));
  ::close(fd);
}

// As Documentation/filesystems/devpts.rst has it for containers. /dev/ptmx may be a device, which finds the directory
// beside it by itself, or something mounted there.
bool mount_terminals() {
  constexpr unsigned long kFlags = MS_NOSUID | MS_NOEXEC;
  const bool mounted =
      ::mount("devpts", "/dev/pts", "devpts", kFlags, "newinstance,ptmxmode=0666,mode=0620,gid=5") == 0;
  if (!mounted && ::mount("devpts", "/dev/pts", "devpts", kFlags, "newinstance,ptmxmode=0666,mode=0620") != 0)
    return false;
  return ::mount("/dev/pts/ptmx", "/dev/ptmx", nullptr, MS_BIND, nullptr) == 0;
}

[[noreturn]] void become_init(const InitPlan& plan) {
  char byte;
  if (::read(plan.go, &byte, 1) != 1) ::_exit(1);  // given up
  // High numbers first, so that one move cannot overwrite the other's source.
  const int channel = ::fcntl(plan.order.channel, F_DUPFD_CLOEXEC, 100),
            carrier = ::fcntl(plan.order.carrier, F_DUPFD_CLOEXEC, 100),
            program = ::fcntl(plan.order.program, F_DUPFD_CLOEXEC, 100);
  if (::dup2(channel, kChannelFd) < 0 || ::dup2(carrier, kCarrierFd) < 0 || program < 0) ::_exit(1);
  // A copy of the job's own mounts: its private /tmp is where its files are.
  if (plan.order.mounts >= 0 && (::setns(plan.order.mounts, CLONE_NEWNS) != 0 || ::unshare(CLONE_NEWNS) != 0))
    fail("enter the mount namespace of the job");
  if (::chdir("/") != 0) fail("enter the root directory");
  // Mounts made on the host later (automounter, NFS) still arrive; those of the capsule do not leave.
  if (::mount("none", "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0) fail("make the mounts of the capsule its own");
  if (::mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0)
    fail("mount /proc of the capsule");
  if (plan.order.own_terminals && !mount_terminals()) fail("mount /dev/pts of the capsule");
  for (const auto& [path, text] : plan.ipc_limits) write_file(path, text);
  for (size_t i = 0; i < RLIM_NLIMITS; ++i)
    if (plan.limits.known[i]) ::setrlimit(static_cast<__rlimit_resource>(i), &plan.limits.values[i]);
  // Numbers, and the running programs of processes: what its copies need until they are whole.
  constexpr uint64_t kKept = 1ull << kCheckpointRestore;
  // A new user namespace comes with a full bounding set.
  for (int capability = 0; plan.order.in_user_namespace && capability < 64; ++capability)
    if ((plan.bounding >> capability & 1) == 0) ::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
  const char* what =
      plan.order.in_user_namespace ? keep_capabilities(kKept, true) : take_identity(*plan.order.identity, kKept, true);
  if (what != nullptr) fail(what);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // after the change of ids, which clears it
  ::syscall(SYS_close_range, 0, kChannelFd - 1, 0);
  ::syscall(SYS_close_range, kCarrierFd + 1, ~0u, kCloseAtExec);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  // Its copies give their memory up while the kernel would still write to a registered struct rseq in it.
  char no_rseq[] = "GLIBC_TUNABLES=glibc.pthread.rseq=0", name[] = "icp-init", number[] = "3";
  char* environment[] = {no_rseq, nullptr};
  char* arguments[] = {name, number, nullptr};
  ::syscall(SYS_execveat, program, "", arguments, environment, AT_EMPTY_PATH);
  fail("start");
}

// The settings that forbid it: of Debian's kernels, of all, and of AppArmor (Ubuntu), where the namespace is made but
// gives no rights.
[[noreturn]] void throw_no_user_namespace(int error) {
  const auto setting = [](const char* path) {
    int64_t value = -1;
    std::ifstream(path) >> value;
    return value;
  };
  std::string hint = "run icp as root";
  if (setting("/proc/sys/kernel/unprivileged_userns_clone") == 0)
    hint = "an administrator can allow them: sysctl kernel.unprivileged_userns_clone=1";
  else if (setting("/proc/sys/user/max_user_namespaces") == 0)
    hint = "an administrator can allow them: sysctl user.max_user_namespaces=10000";
  else if (setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1)
    hint = "an administrator can allow them: sysctl kernel.apparmor_restrict_unprivileged_userns=0";
  throw Error(
      ErrorKind::kPermission,
      fmt::format("a restart without root needs a user namespace, which this host refuses: {}", errno_text(error)),
      error, hint);
}

}  // namespace

UniqueFd open_program(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_PATH | O_CLOEXEC));
  if (!fd) throw_errno("cannot open {}", path);
  return fd;
}

UniqueFd hold_process(pid_t pid) {
  UniqueFd process(::open(fmt::format("/proc/{}", pid).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!process) throw_error(ErrorKind::kGone, "process {} has ended", pid);
  return process;
}

UniqueFd mounts_of(int process) {
  UniqueFd theirs(::openat(process, "ns/mnt", O_RDONLY | O_CLOEXEC));
  const UniqueFd users(::open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC));
  const UniqueFd owner(theirs ? ::ioctl(theirs.get(), NS_GET_USERNS) : -1);
  const auto same = [](int one, const char* path, int other) {
    struct stat a {
    }, b{};
    const int failed = path != nullptr ? ::stat(path, &b) : ::fstat(other, &b);
    return ::fstat(one, &a) == 0 && failed == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
  };
  if (!owner || !same(owner.get(), nullptr, users.get()) || same(theirs.get(), "/proc/self/ns/mnt", -1)) return {};
  return theirs;
}

pid_t start_init(const InitOrder& order) {
  SocketPair go(SOCK_STREAM);
  InitPlan plan{order, {}, IpcLimits::read().as_files(), go.there.get(), 0};
  if (order.process >= 0) plan.limits = limits_of(order.process);
  if (order.in_user_namespace) plan.bounding = ProcStatus::read(::getpid()).cap_bnd;

  clone_args arguments{};
  int handle = -1;  // the worker may wait for its child, whose number is free then
  arguments.pidfd = reinterpret_cast<uint64_t>(&handle);
  arguments.flags = CLONE_PIDFD | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNS | (order.sibling ? CLONE_PARENT : 0) |
                    (order.in_user_namespace ? CLONE_NEWUSER : 0);
  arguments.exit_signal = order.sibling ? 0 : SIGCHLD;  // a sibling has its maker's
  const long pid = ::syscall(SYS_clone3, &arguments, sizeof arguments);
  if (pid < 0 && order.in_user_namespace) throw_no_user_namespace(errno);
  if (pid < 0) throw_errno("cannot make the namespaces of the capsule");
  if (pid == 0) become_init(plan);
  const UniqueFd process(handle);
  go.there.reset();
  try {
    const char* const unwritten =
        order.in_user_namespace ? map_own_ids(std::to_string(pid), ::geteuid(), ::getegid()) : nullptr;
    if (unwritten != nullptr) throw_errno("cannot write {} of a user namespace", unwritten);
    // It is root's still, and ends before that only when this process does: nobody else has its number.
    if (order.like != 0 && order.join) order.join(static_cast<pid_t>(pid), order.like)(static_cast<pid_t>(pid));
    if (::send(go.here.get(), "g", 1, MSG_NOSIGNAL) != 1) throw_errno("cannot start the init of the capsule");
  } catch (...) {
    ::syscall(SYS_pidfd_send_signal, process.get(), SIGKILL, nullptr, 0);
    if (!order.sibling) ::waitpid(static_cast<pid_t>(pid), nullptr, __WALL);
    throw;
  }
  return static_cast<pid_t>(pid);
}

// ---- System V objects ----------------------------------------------------------------------------------------------

UniqueFd start_ipc_helper(const IpcHelperOrder& order) {
  SocketPair ends(SOCK_STREAM);
  const bool detached = order.user_namespace >= 0;
  const pid_t pid = ::fork();
  if (pid < 0) throw_errno("cannot start a helper for System V objects");
  if (pid == 0) {
    if (detached && ::fork() != 0) ::_exit(0);
    const int socket = ::fcntl(ends.there.get(), F_DUPFD_CLOEXEC, 100);
    // IPC namespaces can be entered by who has CAP_SYS_ADMIN both in their user namespace and in the own one.
    if (order.user_namespace >= 0 && ::setns(order.user_namespace, CLONE_NEWUSER) != 0) ::_exit(1);
    if (::setns(order.ipc_namespace, CLONE_NEWIPC) != 0) ::_exit(1);
    if (order.join) order.join(::getpid());
    ::syscall(SYS_close_range, 3, socket - 1, 0);
    ::syscall(SYS_close_range, socket + 1, ~0u, 0);
    constexpr uint64_t kKept = 1ull << kCheckpointRestore;
    const char* what =
        order.user_namespace >= 0 ? keep_capabilities(kKept, false) : take_identity(*order.identity, kKept, false);
    if (what != nullptr) ::_exit(1);
    ::prctl(PR_SET_NAME, "icp-ipc");
    serve_ipc(socket);
    ::_exit(0);
  }
  if (order.handle != nullptr) order.handle->reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  while (detached && ::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  return std::move(ends.here);
}

// ---- who else has an object ----------------------------------------------------------------------------------------

namespace {

// What `look` says of each process; `all` for those that it may not look at.
std::set<InodeId> join_found(const std::vector<pid_t>& processes, const std::set<InodeId>& all,
                             const std::function<void(pid_t, std::set<InodeId>&)>& look) {
  std::set<InodeId> found;
  for (const pid_t pid : processes) {
    try {
      look(pid, found);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone && pid != 1) return all;
    }
    if (found.size() == all.size()) break;
  }
  return found;
}

// Any process may keep who looks at it waiting: all, then.
std::set<InodeId> found_in_time(const std::vector<pid_t>& processes, const std::set<InodeId>& all,
                                const std::function<void(pid_t, std::set<InodeId>&)>& look) {
  constexpr int kPatience = 20'000;  // ms, for all processes of a node
  const auto answer = ask_in_child(
      [&] {
        const std::set<InodeId> found = join_found(processes, all, look);
        return std::move(Message().put_all(std::vector<InodeId>(found.begin(), found.end())));
      },
      kPatience);
  if (!answer) return all;
  const std::vector<InodeId> found = MessageReader(*answer).take_all<InodeId>();
  return {found.begin(), found.end()};
}

}  // namespace

std::optional<InodeId> inode_at(int directory, const char* path) {
  struct statx status {};
  const int flags = AT_STATX_DONT_SYNC | (*path == '\0' ? AT_EMPTY_PATH : 0);
  if (::statx(directory, path, flags, STATX_INO, &status) != 0) return std::nullopt;
  return InodeId{makedev(status.stx_dev_major, status.stx_dev_minor), status.stx_ino};
}

std::set<InodeId> mapped_outside(const std::set<InodeId>& inodes, std::span<const pid_t> inside) {
  std::vector<pid_t> outside = list_processes();
  std::erase_if(outside, [&](pid_t pid) { return std::binary_search(inside.begin(), inside.end(), pid); });
  return found_in_time(outside, inodes, [&](pid_t pid, std::set<InodeId>& found) {
    for (const MapsEntry& entry : MapsEntry::read(pid)) {
      const InodeId inode{makedev(entry.dev_major, entry.dev_minor), entry.ino};
      if (entry.shared && inodes.count(inode) != 0) found.insert(inode);
    }
  });
}

std::set<InodeId> held_open(const std::set<InodeId>& inodes, const std::set<pid_t>& except) {
  std::vector<pid_t> others = list_processes();
  std::erase_if(others, [&](pid_t pid) { return except.contains(pid); });
  return found_in_time(others, inodes, [&](pid_t pid, std::set<InodeId>& found) {
    for (const int number : list_proc_numbers(pid, "fd")) {
      const auto inode = inode_at(AT_FDCWD, fmt::format("/proc/{}/fd/{}", pid, number).c_str());
      if (inode && inodes.count(*inode) != 0) found.insert(*inode);  // else: closed since
    }
  });
}

// ---- the kernel module ---------------------------------------------------------------------------------------------

namespace {

UniqueFd open_module() {
  UniqueFd device(::open(ICP_TRACK_DEVICE, O_RDWR | O_CLOEXEC));
  icp_hello hello{};
  hello.abi = ICP_TRACK_ABI;
  if (!device || ::ioctl(device.get(), ICP_IOC_HELLO, &hello) != 0 || (hello.features & ICP_FEATURE_BROKEN) != 0)
    device.reset();
  return device;
}

}  // namespace

bool has_module() { return static_cast<bool>(open_module()); }

UniqueFd track(icp_track& track) {
  UniqueFd device = open_module();
  if (!device || ::ioctl(device.get(), ICP_IOC_TRACK, &track) != 0) {
    const int error = errno;
    device.reset();
    errno = error;
  }
  return device;
}

// ---- TCP -----------------------------------------------------------------------------------------------------------

namespace {

void check_tcp(int socket) {
  int type = 0, protocol = 0;
  socklen_t length = sizeof type;
  if (::getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &length) != 0 ||
      ::getsockopt(socket, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) != 0)
    throw_errno("cannot look at a socket");
  if (type != SOCK_STREAM || protocol != IPPROTO_TCP) throw_error(ErrorKind::kUsage, "the socket is none of TCP");
}

// It may have its port beside others still, which is what connections of one listener do, but not listen at it.
void forgo_ports(int socket) {
  const int shared = 1;
  ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &shared, sizeof shared);
  refuse_listener(socket);
}

// The largest buffer that TCP takes by itself, in bytes (the third number of net.ipv4.tcp_rmem and tcp_wmem), or that a
// user may ask for (net.core.rmem_max and wmem_max).
size_t most_buffer(bool receive) {
  size_t least = 0, usual = 0, most = 0, asked = 0;
  std::ifstream(receive ? "/proc/sys/net/ipv4/tcp_rmem" : "/proc/sys/net/ipv4/tcp_wmem") >> least >> usual >> most;
  std::ifstream(receive ? "/proc/sys/net/core/rmem_max" : "/proc/sys/net/core/wmem_max") >> asked;
  return std::max(most, asked);
}

}  // namespace

void set_tcp_repair(int socket, int mode) {
  check_tcp(socket);
  if (mode == kTcpDeaf) {
    sock_filter nothing{BPF_RET | BPF_K, 0, 0, 0};
    const sock_fprog program{1, &nothing};
    if (::setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0)
      throw_errno("cannot hold a TCP connection");
    return;
  }
  if (::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR, &mode, sizeof mode) != 0)
    throw_errno("cannot change the repair mode of a TCP socket");
  if (mode == TCP_REPAIR_ON) forgo_ports(socket);
}

int bind_in_repair(int socket, const InetAddress& address, int domain) {
  check_tcp(socket);
  sockaddr_storage name{};
  const socklen_t length = address.to_sockaddr(domain, name);
  if (length == 0) throw_error(ErrorKind::kUsage, "no address to bind a TCP socket to");
  const int on = TCP_REPAIR_ON;
  if (::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) != 0)
    throw_errno("cannot change the repair mode of a TCP socket");
  const int error = ::bind(socket, reinterpret_cast<const sockaddr*>(&name), length) == 0 ? 0 : errno;
  forgo_ports(socket);
  return error;
}

void refuse_listener(int socket) {
  check_tcp(socket);
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) throw_errno("cannot look at a TCP socket");
  if (info.tcpi_state != TCP_LISTEN) return;
  ::shutdown(socket, SHUT_RDWR);
  throw_error(ErrorKind::kPermission, "a TCP socket that listens is not repaired");
}

void widen_tcp_buffer(int socket, int option, size_t bytes) {
  check_tcp(socket);
  if (option != SO_RCVBUFFORCE && option != SO_SNDBUFFORCE) throw_error(ErrorKind::kUsage, "not a socket's buffer");
  // The kernel doubles what it is given, for its own needs (socket(7)).
  const int value = static_cast<int>(std::min({bytes, most_buffer(option == SO_RCVBUFFORCE), size_t{INT32_MAX / 2}}));
  if (::setsockopt(socket, SOL_SOCKET, option, &value, sizeof value) != 0) throw_errno("cannot make room in a socket");
}

}  // namespace icp::privileged
