// SPDX-License-Identifier: GPL-2.0-or-later
// Where nobody is root: a user namespace (user_namespaces(7)) gives a user the rights over new PID, IPC and mount
// namespaces that the broker has otherwise. What takes more than that is not there.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "engine/base/error.h"
#include "engine/broker/broker.h"
#include "engine/broker/broker_impl.h"
#include "engine/broker/operations.h"
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

class UserNamespaceBroker final : public Broker {
 public:
  pid_t start_init(const std::string& program, int channel, int carrier, pid_t like, const Identity& identity,
                   bool own_terminals) override {
    if (identity.uid != ::geteuid() || identity.gid != ::getegid()) refuse("restoring another user's processes");
    const UniqueFd file = privileged::open_program(program);
    const UniqueFd process = like != 0 ? privileged::hold_process(like) : UniqueFd();
    return privileged::start_init({.program = file.get(),
                                   .channel = channel,
                                   .carrier = carrier,
                                   .like = like,
                                   .process = process.get(),
                                   .identity = &identity,
                                   .own_terminals = own_terminals,
                                   .in_user_namespace = true,
                                   .join = nullptr});
  }
  void join(pid_t, pid_t) override {}
  std::unique_ptr<IpcAccess> open_ipc(pid_t process) override {
    UniqueFd ipc = open_ipc_namespace(process);
    if (ipc_namespace_inode(ipc.get()) == ipc_namespace_inode(current_ipc_namespace().get()))
      return IpcAccess::enter(std::move(ipc));
    const UniqueFd user = open_user_namespace(process);
    return IpcAccess::through(
        privileged::start_ipc_helper({.ipc_namespace = ipc.get(), .user_namespace = user.get(), .join = nullptr}));
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
  int bind_in_repair(int, const InetAddress&, int) override { refuse("repair mode of TCP"); }
  std::string peek_tcp_queue(int, int, size_t) override { refuse("repair mode of TCP"); }
  void widen_tcp_buffer(int socket, int option, size_t bytes) override {
    // As far as a user may; a buffer that is too small then shows itself.
    const int value = static_cast<int>(std::min<size_t>(bytes, INT32_MAX / 2));
    ::setsockopt(socket, SOL_SOCKET, option == SO_RCVBUFFORCE ? SO_RCVBUF : SO_SNDBUF, &value, sizeof value);
  }
  void end_leftovers(const InetAddress&, const std::optional<InetAddress>&, uid_t) override {}
  std::map<int, std::string> watched_paths(pid_t, int) override { return {}; }
  ThreadFilters thread_filters(pid_t) override { refuse("reading seccomp filters"); }
  Message ask(uint32_t operation, Message) override {
    throw_error(ErrorKind::kUsage, "the broker has no operation {}", operation);
  }
  bool separate() const override { return false; }
  bool privileged() const override { return false; }
};

}  // namespace

std::unique_ptr<Broker> make_user_namespace_broker() { return std::make_unique<UserNamespaceBroker>(); }

}  // namespace icp
