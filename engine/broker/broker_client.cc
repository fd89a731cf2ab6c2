// SPDX-License-Identifier: GPL-2.0-or-later
// The worker's side of the broker.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <utility>

#include "engine/base/error.h"
#include "engine/base/mutex.h"
#include "engine/broker/broker_impl.h"

namespace icp {
namespace {

constexpr size_t kShownAtOnce = 32;

// A number that another descriptor keeps open while the message is sent.
UniqueFd copy_of(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!copy) throw_errno("cannot duplicate a descriptor for the broker");
  return copy;
}

class Client final : public Broker {
 public:
  explicit Client(UniqueFd socket) : socket_(std::move(socket)) {}

  Message say(BrokerOp operation, Message rest = {}) {
    rest.bytes.insert(0, Message().put(operation).bytes);
    const MutexLock lock(mutex_);
    try {
      send_message(socket_.get(), rest);
      return receive_reply(socket_.get(), kMostReply);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone || error.error_number() != 0 || !gone()) throw;
      throw_error(ErrorKind::kGone, "the broker process, which does what needs root, has ended");
    }
  }

  pid_t start_init(const std::string&, int channel, int carrier, pid_t like, const Identity&,
                   bool own_terminals) override {
    Message request;
    request.put(like).put(own_terminals);
    request.fds.push_back(copy_of(channel));
    request.fds.push_back(copy_of(carrier));
    const Message reply = say(BrokerOp::kStartInit, std::move(request));
    return MessageReader(reply).take<pid_t>();
  }
  void join(pid_t process, pid_t like) override { say(BrokerOp::kJoin, std::move(Message().put(process).put(like))); }
  std::unique_ptr<IpcAccess> open_ipc(pid_t process) override {
    Message reply = say(BrokerOp::kOpenIpc, std::move(Message().put(process)));
    if (reply.fds.size() != 1) throw_error(ErrorKind::kSystem, "no helper for System V objects was started");
    return IpcAccess::through(std::move(reply.fds.front()));
  }
  std::unique_ptr<MachineWatch> watch_machine() override;
  std::set<InodeId> mapped_outside(const std::map<InodeId, int>& files, std::span<const pid_t> inside) override {
    Message request = inodes_of(files);
    request.put_all(std::vector<pid_t>(inside.begin(), inside.end()));
    return inodes_in(say(BrokerOp::kMappedOutside, std::move(request)));
  }
  std::set<InodeId> held_open(const std::map<InodeId, int>& files) override {
    return inodes_in(say(BrokerOp::kHeldOpen, inodes_of(files)));
  }
  UniqueFd track(icp_track& track) override {
    Message request;
    request.put(track).fds.push_back(copy_of(track.pidfd));
    Message reply = say(BrokerOp::kTrack, std::move(request));
    MessageReader reader(reply);
    const int error = reader.take<int>();
    const auto pidfd = track.pidfd;
    track = reader.take<icp_track>();
    track.pidfd = pidfd;
    errno = error;
    return reply.fds.size() == 1 ? std::move(reply.fds.front()) : UniqueFd();
  }
  bool has_module() override {
    const Message reply = say(BrokerOp::kHasModule);
    return MessageReader(reply).take<bool>();
  }
  void set_tcp_repair(int socket, int mode) override {
    say(BrokerOp::kTcpRepair, with_socket(socket, std::move(Message().put(mode))));
  }
  int bind_in_repair(int socket, const InetAddress& address, int domain) override {
    Message request;
    request.put(domain);
    put_end(request, address);
    const Message reply = say(BrokerOp::kTcpBind, with_socket(socket, std::move(request)));
    return MessageReader(reply).take<int>();
  }
  std::string peek_tcp_queue(int socket, int queue, size_t most) override {
    const Message reply =
        say(BrokerOp::kTcpPeek, with_socket(socket, std::move(Message().put(queue).put<uint64_t>(most))));
    return std::string(MessageReader(reply).take_text());
  }
  void widen_tcp_buffer(int socket, int option, size_t bytes) override {
    say(BrokerOp::kTcpWiden, with_socket(socket, std::move(Message().put(option).put<uint64_t>(bytes))));
  }
  void end_leftovers(const InetAddress& local, const std::optional<InetAddress>& remote, uid_t) override {
    Message request;
    put_end(request, local);
    request.put(remote.has_value());
    if (remote) put_end(request, *remote);
    say(BrokerOp::kEndLeftovers, std::move(request));
  }
  std::map<int, std::string> watched_paths(pid_t process, int fd) override {
    const Message reply = say(BrokerOp::kWatchedPaths, std::move(Message().put(process).put(fd)));
    MessageReader reader(reply);
    std::map<int, std::string> paths;
    for (auto left = reader.take<uint64_t>(); left > 0; --left) {
      const int wd = reader.take<int>();
      paths[wd] = reader.take_text();
    }
    return paths;
  }
  ThreadFilters thread_filters(pid_t process) override {
    const Message reply = say(BrokerOp::kThreadFilters, std::move(Message().put(process)));
    MessageReader reader(reply);
    SeccompChain known;
    for (auto left = reader.take<uint64_t>(); left > 0; --left) {
      auto filter = std::make_shared<SeccompFilter>();
      filter->flags = reader.take<uint32_t>();
      filter->program = reader.take_all<sock_filter>();
      known.push_back(std::move(filter));
    }
    ThreadFilters filters;
    for (auto left = reader.take<uint64_t>(); left > 0; --left) {
      FilteredThread& thread = filters[reader.take<pid_t>()];
      for (const uint32_t number : reader.take_all<uint32_t>()) thread.chain.push_back(known.at(number));
      if (reader.take<bool>()) thread.interrupted = reader.take<InterruptedCalls::Call>();
    }
    return filters;
  }
  Message ask(uint32_t operation, Message request) override {
    return say(static_cast<BrokerOp>(operation), std::move(request));
  }
  bool separate() const override { return true; }

  // Shows the broker descriptors of files that it does not know yet; returns their inodes in a message.
  Message inodes_of(const std::map<InodeId, int>& files) {
    std::vector<InodeId> inodes;
    Message unknown;
    const auto show = [&] {
      if (!unknown.fds.empty()) say(BrokerOp::kKnow, std::exchange(unknown, {}));
    };
    for (const auto& [inode, fd] : files) {
      inodes.push_back(inode);
      if (!shown_.insert(inode).second) continue;
      unknown.fds.push_back(copy_of(fd));
      if (unknown.fds.size() == kShownAtOnce) show();
    }
    show();
    return std::move(Message().put_all(inodes));
  }
  static std::set<InodeId> inodes_in(const Message& reply) {
    const std::vector<InodeId> inodes = MessageReader(reply).take_all<InodeId>();
    return {inodes.begin(), inodes.end()};
  }

 private:
  static void put_end(Message& request, const InetAddress& end) {
    request.put_text(end.ip).put(end.port).put(end.scope);
  }
  static Message with_socket(int socket, Message message) {
    message.fds.push_back(copy_of(socket));
    return message;
  }
  bool gone() const {
    char byte;
    return ::recv(socket_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0 || errno == ECONNRESET;
  }

  UniqueFd socket_;
  Mutex mutex_;
  std::set<InodeId> shown_;  // the session's thread alone
};

class RemoteWatch final : public MachineWatch {
 public:
  explicit RemoteWatch(Client& client) : client_(client) { client_.say(BrokerOp::kWatchMake); }
  bool outdated() const override {
    const Message reply = client_.say(BrokerOp::kWatchOutdated);
    return MessageReader(reply).take<bool>();
  }
  void set_inodes(const std::map<InodeId, int>& inodes) override {
    client_.say(BrokerOp::kWatchInodes, client_.inodes_of(inodes));
  }
  uint64_t changes() const override {
    const Message reply = client_.say(BrokerOp::kWatchChanges);
    return MessageReader(reply).take<uint64_t>();
  }
  void begin() override { client_.say(BrokerOp::kWatchBegin); }
  void end() override { client_.say(BrokerOp::kWatchEnd); }
  void take(Seen& seen) override {
    const Message reply = client_.say(BrokerOp::kWatchTake);
    MessageReader reader(reply);
    seen.complete = reader.take<bool>() && seen.complete;
    for (const InodeId& inode : reader.take_all<InodeId>()) seen.touched.insert(inode);
    for (const pid_t pid : reader.take_all<pid_t>()) seen.forked.insert(pid);
  }

 private:
  Client& client_;
};

std::unique_ptr<MachineWatch> Client::watch_machine() { return std::make_unique<RemoteWatch>(*this); }

}  // namespace

std::unique_ptr<Broker> make_broker_client(UniqueFd socket) { return std::make_unique<Client>(std::move(socket)); }

}  // namespace icp
