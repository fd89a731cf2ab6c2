// SPDX-License-Identifier: GPL-2.0-or-later
// The process is its own broker: root's, who works for root, and the tests'.
#include <unistd.h>

#include <memory>

#include "engine/broker/broker.h"
#include "engine/broker/broker_impl.h"
#include "engine/broker/operations.h"
#include "engine/broker/tcp_queue.h"
#include "engine/broker/watched_paths.h"
#include "engine/files/inet_diag.h"
#include "engine/sysv/ipc_namespace.h"

namespace icp {
namespace {

std::set<InodeId> inodes_of(const std::map<InodeId, int>& files) {
  std::set<InodeId> inodes;
  for (const auto& [inode, fd] : files) inodes.insert(inode);
  return inodes;
}

class DirectBroker final : public Broker {
 public:
  explicit DirectBroker(JoinGroups join) : join_(std::move(join)) {}

  pid_t start_init(const std::string& program, int channel, int carrier, pid_t like, const Identity& identity,
                   bool own_terminals) override {
    const UniqueFd file = privileged::open_program(program);
    const UniqueFd process = like != 0 ? privileged::hold_process(like) : UniqueFd();
    const UniqueFd mounts = process ? privileged::mounts_of(process.get()) : UniqueFd();
    return privileged::start_init({.program = file.get(),
                                   .channel = channel,
                                   .carrier = carrier,
                                   .like = like,
                                   .process = process.get(),
                                   .mounts = mounts.get(),
                                   .identity = &identity,
                                   .own_terminals = own_terminals,
                                   .join = join_});
  }
  void join(pid_t process, pid_t like) override {
    if (join_) join_(process, like)(process);
  }
  std::unique_ptr<IpcAccess> open_ipc(pid_t process) override { return IpcAccess::enter(open_ipc_namespace(process)); }
  std::unique_ptr<MachineWatch> watch_machine() override { return MachineWatch::make(); }
  std::set<InodeId> mapped_outside(const std::map<InodeId, int>& files, std::span<const pid_t> inside) override {
    return privileged::mapped_outside(inodes_of(files), inside);
  }
  std::set<InodeId> held_open(const std::map<InodeId, int>& files) override {
    return privileged::held_open(inodes_of(files), {::getpid()});
  }
  UniqueFd track(icp_track& track) override { return privileged::track(track); }
  bool has_module() override { return privileged::has_module(); }
  void set_tcp_repair(int socket, int mode) override { privileged::set_tcp_repair(socket, mode); }
  int bind_in_repair(int socket, const InetAddress& address, int domain) override {
    return privileged::bind_in_repair(socket, address, domain);
  }
  std::string peek_tcp_queue(int socket, int queue, size_t most) override {
    if (tcp_process_ != ::getpid()) {
      (void)tcp_.release();  // of the process that this one was forked from, where its memory stayed
      tcp_ = std::make_unique<TcpQueuePeek>();
      tcp_process_ = ::getpid();
    }
    return tcp_->peek(socket, queue, most);
  }
  void widen_tcp_buffer(int socket, int option, size_t bytes) override {
    privileged::widen_tcp_buffer(socket, option, bytes);
  }
  void end_leftovers(const InetAddress& local, const std::optional<InetAddress>& remote, uid_t uid) override {
    InetDiagSocket().end_leftovers(local, remote, uid);
  }
  std::map<int, std::string> watched_paths(pid_t process, int fd) override {
    return privileged::watched_paths(privileged::hold_process(process).get(), fd);
  }
  ThreadFilters thread_filters(pid_t process) override {
    return privileged::thread_filters(process, [] {});
  }
  Message ask(uint32_t operation, Message request) override {
    const auto found = more_.find(operation);
    if (found == more_.end()) throw_error(ErrorKind::kUsage, "the broker has no operation {}", operation);
    MessageReader reader(request);
    return found->second(reader, request);
  }
  bool separate() const override { return false; }

  std::map<uint32_t, std::function<Message(MessageReader&, Message&)>> more_;

 private:
  JoinGroups join_;
  std::unique_ptr<TcpQueuePeek> tcp_;  // kept: making one takes longer than a look
  pid_t tcp_process_ = 0;              // whose it is
};

std::unique_ptr<Broker>& current() {
  static std::unique_ptr<Broker> broker =
      ::geteuid() == 0 ? std::make_unique<DirectBroker>(nullptr) : make_user_namespace_broker();
  return broker;
}

}  // namespace

Broker& broker() { return *current(); }
void set_broker(std::unique_ptr<Broker> broker) { current() = std::move(broker); }

std::unique_ptr<Broker> make_direct_broker(BrokerOptions options) {
  auto broker = std::make_unique<DirectBroker>(std::move(options.join));
  broker->more_ = std::move(options.more);
  return broker;
}

}  // namespace icp
