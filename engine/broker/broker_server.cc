// SPDX-License-Identifier: GPL-2.0-or-later
// The broker process: root's side. The worker is believed no more than its user is, so each request is checked here:
// the processes it names are the user's own and such as the user may look into, the files it asks about are ones it
// could open, and what it is told is about those alone.
#include <fcntl.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/process_signal.h"
#include "engine/base/procfs.h"
#include "engine/broker/broker_impl.h"
#include "engine/broker/child_call.h"
#include "engine/broker/operations.h"
#include "engine/broker/rights.h"
#include "engine/broker/tcp_queue.h"
#include "engine/broker/watched_paths.h"
#include "engine/files/inet_diag.h"
#include "engine/files/socket_option.h"
#include "engine/sysv/ipc_namespace.h"

namespace icp {
namespace {

constexpr size_t kMostKnown = 1 << 20;
constexpr size_t kMostHelpers = 64;
constexpr size_t kMostPeek = 64 << 20;  // bytes of a TCP queue; the kernel's tcp_wmem is a few MiB
constexpr size_t kMostIpBytes = 16;

class Server {
 public:
  Server(int socket, const BrokerOptions& options, pid_t worker) : socket_(socket), options_(options), worker_(worker) {
    program_ = privileged::open_program(options.init_program.empty() ? default_init_program() : options.init_program);
    ending_.reset(static_cast<int>(::syscall(SYS_pidfd_open, worker, 0)));
    if (!ending_ || ::getppid() != worker) throw_error(ErrorKind::kGone, "the worker has ended");
    peer_.pidfd = ending_.get();
    // Elsewhere than in a step it may be who has started it that has stopped it, at a terminal.
    if (options.join) peer_.idle = [this] { look_at_worker(); };
  }

  // The worker's end of the socket may be in other hands by now: what is done, is done for the worker, while it lives.
  void serve() {
    for (;;) {
      Message request = receive_message(socket_, kMostRequest, &peer_);
      end_when_over();
      Message reply;
      try {
        reply = answer(request);
      } catch (const Error& error) {
        send_error(socket_, error, &peer_);
        continue;
      } catch (const std::exception& error) {
        send_error(socket_, Error(ErrorKind::kSystem, error.what()), &peer_);
        continue;
      }
      send_reply(socket_, std::move(reply), &peer_);
    }
  }

 private:
  // A worker that its user has stopped, or taken over, would be there for ever, after its job, too, and this process
  // with it.
  void look_at_worker() {
    constexpr int kMostLooks = 12;  // a minute
    end_when_over();
    stopped_ = ProcStat::read(worker_).state == 'T' ? stopped_ + 1 : 0;
    if (stopped_ >= kMostLooks) end_worker("was stopped");
  }
  void end_when_over() {
    if (options_.over && options_.over()) end_worker("has outlived its step");
  }
  [[noreturn]] void end_worker(const char* why) {
    ::syscall(SYS_pidfd_send_signal, ending_.get(), SIGKILL, nullptr, 0);
    throw_error(ErrorKind::kGone, "the worker {}", why);
  }

  Message answer(Message& request) {
    MessageReader reader(request);
    const auto operation = reader.take<BrokerOp>();
    switch (operation) {
      case BrokerOp::kStartInit:
        return start_init(reader, request);
      case BrokerOp::kOpenIpc:
        return open_ipc(reader);
      case BrokerOp::kTrack:
        return track(reader, request);
      case BrokerOp::kHasModule:
        return std::move(Message().put(privileged::has_module()));
      case BrokerOp::kTcpRepair:
      case BrokerOp::kTcpPeek:
      case BrokerOp::kTcpWiden:
      case BrokerOp::kTcpBind:
        return tcp(operation, reader, request);
      case BrokerOp::kEndLeftovers:
        return end_leftovers(reader);
      case BrokerOp::kWatchedPaths:
        return watched_paths(reader);
      case BrokerOp::kThreadFilters:
        return thread_filters(reader);
      case BrokerOp::kJoin:
        return join(reader);
      default:
        break;
    }
    if (operation < BrokerOp::kFirstOfProgram) return watch(operation, reader, request);
    const auto found = options_.more.find(static_cast<uint32_t>(operation));
    if (found == options_.more.end()) throw_error(ErrorKind::kUsage, "an unknown request");
    return found->second(reader, request);
  }

  // Throws unless the process is the user's, all ids of user and group, and the user may look into it: it has no
  // capability that the worker has not, and its /proc/PID is not root's (fs/proc/base.c, task_dump_owner()). What the
  // kernel asks of a worker that wants to trace it.
  void check_own(pid_t pid) const {
    struct stat status {};
    if (pid <= 0 || ::stat(fmt::format("/proc/{}", pid).c_str(), &status) != 0)
      throw_error(ErrorKind::kGone, "process {} has ended", pid);
    const Identity& user = options_.identity;
    const ProcStatus process = ProcStatus::read(pid);
    const bool ids =
        std::all_of(process.uid.begin(), process.uid.end(), [&user](uid_t uid) { return uid == user.uid; }) &&
        std::all_of(process.gid.begin(), process.gid.end(), [&user](gid_t gid) { return gid == user.gid; });
    // Capabilities in a user namespace of its own are over that alone.
    const auto no_more = [&] {
      return (process.cap_prm & ~(1ull << kCheckpointRestore)) == 0 ||
             read_proc_link(pid, "ns/user") != read_proc_link(::getpid(), "ns/user");
    };
    if (!ids || status.st_uid != user.uid || !no_more())
      throw_error(ErrorKind::kPermission, "process {} is not one that user {} may look into", pid, user.uid);
  }

  int only_fd(const Message& request) const {
    if (request.fds.size() != 1) throw_error(ErrorKind::kUsage, "the request needs one descriptor");
    return request.fds.front().get();
  }

  // What root's child says there before it is the user's comes from root, for those who look (SCM_CREDENTIALS).
  void check_users_end(int socket) const {
    ucred other{};
    int type = 0;
    socklen_t of_other = sizeof other, of_type = sizeof type;
    if (::getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &of_type) != 0 ||
        (type != SOCK_STREAM && type != SOCK_SEQPACKET) ||
        ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &other, &of_other) != 0 || other.uid != options_.identity.uid)
      throw_error(ErrorKind::kPermission, "the channel of an init is a socket pair of the user's");
  }

  Message start_init(MessageReader& reader, const Message& request) {
    const auto like = reader.take<pid_t>();
    const bool own_terminals = reader.take<uint8_t>() != 0;
    if (request.fds.size() != 2) throw_error(ErrorKind::kUsage, "the request needs two descriptors");
    check_users_end(request.fds[0].get());
    // Without a process of the step it would have this process's limits and cgroups, which are root's.
    if (like != 0 && !options_.join) throw_error(ErrorKind::kPermission, "there is no step whose cgroups to join");
    if (like == 0 && options_.join) throw_error(ErrorKind::kPermission, "an init that is in no step");
    UniqueFd process, mounts;
    if (like != 0) {
      process = hold_own(like);
      mounts = privileged::mounts_of(process.get());
      check_own(like);
      check_held(process, like);
    }
    const privileged::InitOrder order{.program = program_.get(),
                                      .channel = request.fds[0].get(),
                                      .carrier = request.fds[1].get(),
                                      .like = like,
                                      .process = process.get(),
                                      .mounts = mounts.get(),
                                      .identity = &options_.identity,
                                      .own_terminals = own_terminals,
                                      .sibling = true,
                                      .join = options_.join};
    return std::move(Message().put(privileged::start_init(order)));
  }

  // A process of the user by its directory in /proc: the number may be another's by the time it is used.
  UniqueFd hold_own(pid_t pid) const {
    UniqueFd process = privileged::hold_process(pid);
    check_own(pid);
    check_held(process, pid);
    return process;
  }
  // The directory is still that of the process it was opened for.
  static void check_held(const UniqueFd& process, pid_t pid) {
    struct stat same {};
    if (::fstatat(process.get(), "status", &same, 0) != 0) throw_error(ErrorKind::kGone, "process {} has ended", pid);
  }

  Message open_ipc(MessageReader& reader) {
    const auto pid = reader.take<pid_t>();
    const UniqueFd process = hold_own(pid);
    const UniqueFd space(::openat(process.get(), "ns/ipc", O_RDONLY | O_CLOEXEC));
    if (!space) throw_error(ErrorKind::kGone, "process {} has ended", pid);
    check_own(pid);
    check_held(process, pid);
    std::erase_if(helpers_, has_ended);
    // They are where the worker is, in no group of the job's that limits processes.
    if (helpers_.size() >= kMostHelpers) throw_error(ErrorKind::kPermission, "too many helpers for System V objects");
    const pid_t worker = worker_;
    const auto join = [this, worker](pid_t helper) {
      if (options_.join) options_.join(helper, worker)(helper);
    };
    Message reply;
    UniqueFd handle;
    reply.fds.push_back(privileged::start_ipc_helper(
        {.ipc_namespace = space.get(), .identity = &options_.identity, .join = join, .handle = &handle}));
    if (handle) helpers_.push_back(std::move(handle));
    return reply;
  }

  // Of the worker's own making; and where to, the program checks.
  Message join(MessageReader& reader) const {
    const auto pid = reader.take<pid_t>(), like = reader.take<pid_t>();
    if (!options_.join) throw_error(ErrorKind::kPermission, "there is no step whose cgroups to join");
    const UniqueFd process = hold_own(pid), task = hold_own(like);
    pid_t above = pid;
    while (above > 1 && above != worker_) above = ProcStat::read(above).ppid;
    if (above != worker_) throw_error(ErrorKind::kPermission, "process {} is not being restored", pid);
    check_held(process, pid);
    const auto put = options_.join(pid, like);
    check_held(task, like);
    call_in_pid_namespace(process.get(), put);
    return {};
  }

  Message watched_paths(MessageReader& reader) {
    const auto pid = reader.take<pid_t>();
    const auto fd = reader.take<int>();
    const UniqueFd process = hold_own(pid);
    const std::map<int, std::string> paths = privileged::watched_paths(process.get(), fd);
    check_own(pid);
    check_held(process, pid);
    Message reply;
    reply.put<uint64_t>(paths.size());
    for (const auto& [wd, path] : paths) reply.put(wd).put_text(path);
    return reply;
  }

  // Its number cannot become another's while it is stopped.
  Message thread_filters(MessageReader& reader) {
    const auto pid = reader.take<pid_t>();
    check_own(pid);
    const ThreadFilters filters = privileged::thread_filters(pid, [&] { check_own(pid); });
    std::map<const SeccompFilter*, uint32_t> numbers;
    Message programs, threads, reply;
    for (const auto& [tid, thread] : filters) {
      std::vector<uint32_t> used;
      for (const auto& filter : thread.chain) {
        const auto [number, is_new] = numbers.try_emplace(filter.get(), static_cast<uint32_t>(numbers.size()));
        if (is_new) programs.put(filter->flags).put_all(filter->program);
        used.push_back(number->second);
      }
      threads.put(tid).put_all(used).put(thread.interrupted.has_value());
      if (thread.interrupted) threads.put(*thread.interrupted);
    }
    reply.put<uint64_t>(numbers.size()).bytes += programs.bytes;
    reply.put<uint64_t>(filters.size()).bytes += threads.bytes;
    return reply;
  }

  Message track(MessageReader& reader, const Message& request) {
    auto order = reader.take<icp_track>();
    const int pidfd = only_fd(request);
    pid_t pid = 0;
    const std::string text = read_proc(::getpid(), fmt::format("fdinfo/{}", pidfd));
    if (const size_t at = text.find("\nPid:"); at != std::string::npos) pid = std::atoi(text.c_str() + at + 5);
    check_own(pid);
    order.pidfd = pidfd;
    Message reply;
    UniqueFd device = privileged::track(order);
    const int error = errno;
    check_own(pid);  // it may have executed another program meanwhile
    reply.put(device ? 0 : error).put(order);
    if (device) reply.fds.push_back(std::move(device));
    return reply;
  }

  // Whoever holds the socket could be the connection's process. What repair mode gives beyond that is a connection of
  // an own port with numbers of one's choice: docs/security.md.
  Message tcp(BrokerOp operation, MessageReader& reader, const Message& request) {
    const int socket = only_fd(request);
    if (operation == BrokerOp::kTcpRepair) {
      privileged::set_tcp_repair(socket, reader.take<int>());
    } else if (operation == BrokerOp::kTcpWiden) {
      const auto option = reader.take<int>();
      privileged::widen_tcp_buffer(socket, option, reader.take<uint64_t>());
    } else if (operation == BrokerOp::kTcpBind) {
      const auto domain = reader.take<int>();
      const InetAddress address = take_end(reader);
      check_port(address.port);
      if (InetDiagSocket().others_listen(address.port, options_.identity.uid))
        return std::move(Message().put<int>(EADDRINUSE));
      return std::move(Message().put(privileged::bind_in_repair(socket, address, domain)));
    } else {
      const auto queue = reader.take<int>();
      const auto most = std::min<uint64_t>(reader.take<uint64_t>(), kMostPeek);
      return std::move(Message().put_text(peek(socket, queue, most)));
    }
    return {};
  }

  // While it lasts the socket is in repair mode.
  std::string peek(int socket, int queue, size_t most) {
    privileged::refuse_listener(socket);
    std::string data;
    try {
      data = tcp_.peek(socket, queue, most);
    } catch (const Error&) {
      privileged::refuse_listener(socket);
      throw;
    }
    privileged::refuse_listener(socket);
    return data;
  }

  static InetAddress take_end(MessageReader& reader) {
    InetAddress address;
    address.ip = reader.take_text().substr(0, kMostIpBytes);
    address.port = reader.take<uint16_t>();
    address.scope = reader.take<uint32_t>();
    return address;
  }
  void check_port(uint16_t port) const {
    if (port < first_unprivileged_port())
      throw_error(ErrorKind::kPermission, "port {} is none of user {}", port, options_.identity.uid);
  }

  Message end_leftovers(MessageReader& reader) {
    const InetAddress local = take_end(reader);
    check_port(local.port);
    std::optional<InetAddress> remote;
    if (reader.take<uint8_t>() != 0) remote = take_end(reader);
    InetDiagSocket().end_leftovers(local, remote, options_.identity.uid);
    return {};
  }

  // ---- who has an object, and who comes ----

  // Files are asked about only by those who hold a descriptor of them.
  void know(const Message& request) {
    for (const UniqueFd& fd : request.fds) {
      // O_PATH opens what its holder may not.
      const int flags = ::fcntl(fd.get(), F_GETFL);
      if (flags < 0 || (flags & O_PATH) != 0) throw_error(ErrorKind::kPermission, "a file that is not open");
      const auto inode = privileged::inode_at(fd.get(), "");
      if (inode && known_.size() < kMostKnown) known_.insert(*inode);
    }
  }

  std::set<InodeId> take_inodes(MessageReader& reader) const {
    std::set<InodeId> inodes;
    for (const InodeId& inode : reader.take_all<InodeId>()) {
      if (!known_.contains(inode)) throw_error(ErrorKind::kPermission, "a file nobody has shown");
      inodes.insert(inode);
    }
    return inodes;
  }

  MachineWatch& machine() {
    if (!watch_) throw_error(ErrorKind::kUsage, "no watch is there");
    return *watch_;
  }

  Message watch(BrokerOp operation, MessageReader& reader, const Message& request) {
    Message reply;
    switch (operation) {
      case BrokerOp::kKnow:
        know(request);
        break;
      case BrokerOp::kWatchMake:
        watch_ = MachineWatch::make();
        seen_ = {};
        break;
      case BrokerOp::kWatchOutdated:
        reply.put(machine().outdated());
        break;
      case BrokerOp::kWatchInodes: {
        std::map<InodeId, int> files;
        for (const InodeId& inode : take_inodes(reader)) files.emplace(inode, -1);
        machine().set_inodes(files);
        break;
      }
      case BrokerOp::kWatchChanges:
        reply.put(machine().changes());
        break;
      case BrokerOp::kWatchBegin:
        machine().begin();
        seen_ = {};
        break;
      case BrokerOp::kWatchEnd:
        machine().end();
        break;
      case BrokerOp::kWatchTake:
        take_seen(reply);
        break;
      case BrokerOp::kMappedOutside: {
        const std::set<InodeId> inodes = take_inodes(reader);
        reply.put_all(as_vector(privileged::mapped_outside(inodes, reader.take_all<pid_t>())));
        break;
      }
      case BrokerOp::kHeldOpen:
        reply.put_all(as_vector(privileged::held_open(take_inodes(reader), {::getpid(), worker_})));
        break;
      default:
        throw_error(ErrorKind::kUsage, "an unknown request");
    }
    return reply;
  }

  static std::vector<InodeId> as_vector(const std::set<InodeId>& inodes) { return {inodes.begin(), inodes.end()}; }

  // All that was seen is kept here; the worker hears of the user's processes and of files that it has shown.
  void take_seen(Message& reply) {
    machine().take(seen_);
    std::vector<InodeId> touched;
    std::set_intersection(seen_.touched.begin(), seen_.touched.end(), known_.begin(), known_.end(),
                          std::back_inserter(touched));
    std::vector<pid_t> forked;
    for (const pid_t pid : seen_.forked) {
      struct stat status {};
      if (::stat(fmt::format("/proc/{}", pid).c_str(), &status) == 0 && status.st_uid == options_.identity.uid)
        forked.push_back(pid);
    }
    reply.put(seen_.complete).put_all(touched).put_all(forked);
  }

  int socket_;
  const BrokerOptions& options_;
  const pid_t worker_;
  UniqueFd ending_;  // the worker's pidfd
  Peer peer_;
  int stopped_ = 0;  // how often it was seen stopped by a signal, in a row
  UniqueFd program_;
  TcpQueuePeek tcp_;
  std::set<InodeId> known_;
  std::unique_ptr<MachineWatch> watch_;
  MachineWatch::Seen seen_;
  std::vector<UniqueFd> helpers_;  // pidfds
};

}  // namespace

void serve_broker(int socket, const BrokerOptions& options, pid_t worker) {
  try {
    Server(socket, options, worker).serve();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kGone)
      spdlog::error("the broker of user {} ends: {}", options.identity.uid, error.what());
  }
}

}  // namespace icp
