// SPDX-License-Identifier: GPL-2.0-or-later
// Where nobody is root: a user namespace (user_namespaces(7)) gives a user the rights over new PID, IPC and mount
// namespaces that the broker has otherwise. What takes more than that is not there.
#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "engine/base/error.h"
#include "engine/broker/broker.h"
#include "engine/broker/broker_impl.h"
#include "engine/broker/operations.h"
#include "engine/broker/rights.h"
#include "engine/sysv/ipc_namespace.h"

namespace icp {
namespace {

[[noreturn]] void refuse(const char* what) {
  throw_error(ErrorKind::kPermission, "{} takes root: this icp works without it", what);
}

UniqueFd open_user_namespace(pid_t pid) {
  UniqueFd fd(::open(fmt::format("/proc/{}/ns/user", pid).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) throw_errno("cannot open the user namespace of process {}", pid);
  return fd;
}

// A process that has one thread, as setns(2) asks for user namespaces; it ends when `here` is closed.
UniqueFd start_helper(const UniqueFd& user, const UniqueFd& ipc) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) throw_errno("cannot make a socket pair");
  UniqueFd here(ends[0]);
  const UniqueFd there(ends[1]);
  // Made by a child that ends at once, so that nobody has to wait for it.
  const pid_t pid = ::fork();
  if (pid < 0) throw_errno("cannot start a helper for System V objects");
  if (pid == 0) {
    if (::fork() != 0) ::_exit(0);
    const int socket = ::fcntl(there.get(), F_DUPFD_CLOEXEC, 100);
    // IPC namespaces can be entered by who has CAP_SYS_ADMIN both in their user namespace and in the own one.
    if (::setns(user.get(), CLONE_NEWUSER) != 0 || ::setns(ipc.get(), CLONE_NEWIPC) != 0) ::_exit(1);
    ::syscall(SYS_close_range, 3, socket - 1, 0);
    ::syscall(SYS_close_range, socket + 1, ~0u, 0);
    if (keep_capabilities(1ull << kCheckpointRestore, false) != nullptr) ::_exit(1);
    ::prctl(PR_SET_DUMPABLE, 1);
    ::prctl(PR_SET_NAME, "icp-ipc");
    serve_ipc(socket);
    ::_exit(0);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return here;
}

class UserNamespaceBroker final : public Broker {
 public:
  pid_t start_init(const std::string& program, int channel, int carrier, pid_t like, const Identity& identity,
                   bool own_terminals) override {
    if (identity.uid != ::geteuid() || identity.gid != ::getegid()) refuse("restoring another user's processes");
    const UniqueFd file = privileged::open_program(program);
    return privileged::start_init({.program = file.get(),
                                   .channel = channel,
                                   .carrier = carrier,
                                   .like = like,
                                   .identity = &identity,
                                   .own_terminals = own_terminals,
                                   .in_user_namespace = true,
                                   .join = nullptr});
  }
  std::unique_ptr<IpcAccess> open_ipc(pid_t process) override {
    UniqueFd ipc = open_ipc_namespace(process);
    if (ipc_namespace_inode(ipc.get()) == ipc_namespace_inode(current_ipc_namespace().get()))
      return IpcAccess::enter(std::move(ipc));
    return IpcAccess::through(start_helper(open_user_namespace(process), ipc));
  }
  std::unique_ptr<MachineWatch> watch_machine() override { refuse("the watch over shared memory"); }
  std::set<InodeId> mapped_outside(const std::map<InodeId, int>&, std::span<const pid_t>) override {
    refuse("looking into other users' processes");
  }
  std::set<InodeId> held_open(const std::map<InodeId, int>&) override { refuse("looking into other users' processes"); }
  UniqueFd track(icp_track&) override {
    errno = EPERM;
    return {};
  }
  bool has_module() override { return false; }
  void set_tcp_repair(int, int) override { refuse("repair mode of TCP"); }
  std::string peek_tcp_queue(int, int, size_t) override { refuse("repair mode of TCP"); }
  void widen_tcp_buffer(int socket, int option, size_t bytes) override {
    // As far as a user may; a buffer that is too small then shows itself.
    const int value = static_cast<int>(std::min<size_t>(bytes, INT32_MAX / 2));
    ::setsockopt(socket, SOL_SOCKET, option == SO_RCVBUFFORCE ? SO_RCVBUF : SO_SNDBUF, &value, sizeof value);
  }
  void end_leftovers(const InetAddress&, const std::optional<InetAddress>&, uid_t) override {}
  std::map<int, std::string> watched_paths(pid_t, int) override { return {}; }
  Message ask(uint32_t operation, Message) override {
    throw_error(ErrorKind::kUsage, "the broker has no operation {}", operation);
  }
  bool separate() const override { return false; }
  bool privileged() const override { return false; }
};

}  // namespace

std::unique_ptr<Broker> make_user_namespace_broker() { return std::make_unique<UserNamespaceBroker>(); }

}  // namespace icp
