// SPDX-License-Identifier: GPL-2.0-or-later
// What root does for a worker, the process that checkpoints and restores with its user's rights alone: a short list of
// named operations. Everything else is the worker's, and the kernel decides whether its user may do it.
//
// Three ways to have them: a broker process (become_worker), which checks every request as if the user had sent it;
// this process itself, where it is root's own and works for root; and a user namespace, where nobody is root. The last
// two are what a process has by itself, as it is root or not.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/base/identity.h"
#include "engine/base/unique_fd.h"
#include "engine/broker/machine_watch.h"
#include "engine/broker/message.h"
#include "engine/broker/thread_filters.h"
#include "engine/files/inet_address.h"
#include "engine/sysv/ipc_access.h"
#include "kmod/uapi/icp_track.h"

namespace icp {

// Thread-safe: one request at a time. All throw Error; kGone when the broker has been killed.
class Broker {
 public:
  virtual ~Broker() = default;

  // Starts icp-init (`program`, or the broker's own where it is a process of its own) as pid 1 of new PID, IPC and
  // mount namespaces, as `identity` with CAP_CHECKPOINT_RESTORE, a child of the worker; in the cgroups and with the
  // limits of `like`, a process of the user's step, unless 0. The namespaces' System V limits are the host's. It finds
  // `channel` and `carrier`, sockets, on descriptors 3 and 4. With `own_terminals` its /dev/pts is a new one, in which
  // no number is taken. CAP_SYS_ADMIN makes namespaces, mounts /proc and /dev/pts, and writes cgroups.
  virtual pid_t start_init(const std::string& program, int channel, int carrier, pid_t like, const Identity& identity,
                           bool own_terminals) = 0;
  // Puts a process under construction, which descends from that init, into the cgroups of `like`, the task of the step
  // whose place it takes. CAP_DAC_OVERRIDE writes cgroups.
  virtual void join(pid_t process, pid_t like) = 0;
  // System V objects in the IPC namespace of a process of the user, with the user's rights. CAP_SYS_ADMIN enters it.
  virtual std::unique_ptr<IpcAccess> open_ipc(pid_t process) = 0;
  // Who maps, forks and frees what on this machine; see there. CAP_PERFMON.
  virtual std::unique_ptr<MachineWatch> watch_machine() = 0;
  // Which of these files (descriptors that stand for them) processes map other than those `inside` (ascending), or hold
  // open other than the worker. CAP_SYS_PTRACE looks at other users' processes.
  virtual std::set<InodeId> mapped_outside(const std::map<InodeId, int>& files, std::span<const pid_t> inside) = 0;
  virtual std::set<InodeId> held_open(const std::map<InodeId, int>& files) = 0;
  // A tracking of the kernel module (ICP_IOC_TRACK of `track`, whose pidfd is of a process of the user). The module is
  // CAP_SYS_ADMIN's. Without it, or when it refuses: no descriptor, and errno.
  virtual UniqueFd track(icp_track& track) = 0;
  virtual bool has_module() = 0;
  // Repair mode of a TCP socket of the user that is closed or connected (TCP_REPAIR: CAP_NET_ADMIN).
  virtual void set_tcp_repair(int socket, int mode) = 0;
  // Binds a closed socket in repair mode to an address that connections have already, of an unprivileged port at which
  // no other user listens. An errno value; 0: it is bound.
  virtual int bind_in_repair(int socket, const InetAddress& address, int domain) = 0;
  // Enters repair mode, selects a queue for TCP_QUEUE_SEQ, copies what it holds up to `most` bytes, leaves it again.
  virtual std::string peek_tcp_queue(int socket, int queue, size_t most) = 0;
  // SO_RCVBUFFORCE or SO_SNDBUFFORCE of a TCP socket, up to what TCP itself would give it (tcp_rmem,
  // tcp_wmem). CAP_NET_ADMIN.
  virtual void widen_tcp_buffer(int socket, int option, size_t bytes) = 0;
  // Ends what is left of closed connections of the user with these ends (SOCK_DESTROY: CAP_NET_ADMIN).
  virtual void end_leftovers(const InetAddress& local, const std::optional<InetAddress>& remote, uid_t uid) = 0;
  // Paths, by watch descriptor, of what `fd`, an inotify instance of a process of the user, watches; hints, as far as
  // the kernel knows them. CAP_DAC_READ_SEARCH opens a file by its handle.
  virtual std::map<int, std::string> watched_paths(pid_t process, int fd) = 0;
  // The seccomp filters of the threads of a process of the user, which is stopped for a moment. The kernel shows them
  // to CAP_SYS_ADMIN.
  virtual ThreadFilters thread_filters(pid_t process) = 0;
  // An operation of the program that the worker is part of (BrokerOptions::more).
  virtual Message ask(uint32_t operation, Message request) = 0;
  // True when the worker is a process of its own, and root's rights are not at hand otherwise.
  virtual bool separate() const = 0;
  // False where nobody is root: repair mode of TCP, tracking by the kernel module, looking into other users' processes
  // and the watch over shared memory throw kPermission then, and descriptors of other processes' shared memory are not
  // to be had.
  virtual bool privileged() const { return true; }
};

// The process's broker. Until become_worker() this process itself.
Broker& broker();

using JoinGroups = std::function<std::function<void(pid_t number)>(pid_t pid, pid_t like)>;

struct BrokerOptions {
  Identity identity;  // the user: root's word, never an image's or the worker's
  // Checks that `like` is of the step; what it returns puts a new process of the user, `pid`, into the cgroups of that,
  // by the number that it has where that is called. May be empty: then it is asked for by nobody.
  JoinGroups join;
  // Whether what the worker was for is over: it is ended then. May be empty.
  std::function<bool()> over;
  std::string init_program;  // icp-init; empty: beside this program, else where it is installed
  // Further operations, by number from 100 on. They run in the broker process, and check what they are given.
  std::map<uint32_t, std::function<Message(MessageReader&, Message&)>> more;
  std::vector<int> not_for_broker;  // descriptors whose other ends wait for their close
  uint64_t address_space = 0;       // bytes the worker may map (RLIMIT_AS); 0: no limit
};

// icp-init beside the running program, else where it is installed.
std::string default_init_program();

// Parts this process, which has one thread: a child goes on as the broker, root as before, and ends with this process,
// which takes the user's ids and groups, no capability but CAP_CHECKPOINT_RESTORE, no_new_privs, and a filter of system
// calls. For root itself nothing happens: root's worker may do what root may. Throws Error, after which the caller must
// end.
void become_worker(BrokerOptions options);

}  // namespace icp
