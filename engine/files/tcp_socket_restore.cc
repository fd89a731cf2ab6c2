// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <climits>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/own_network.h"
#include "engine/broker/broker.h"
#include "engine/files/held_connections.h"
#include "engine/files/inet_diag.h"
#include "engine/files/packet_options.h"
#include "engine/files/socket_option.h"
#include "engine/files/tcp_reconnect.h"
#include "engine/files/tcp_socket.h"

namespace icp {
namespace {

constexpr size_t kMostQueued = 1u << 30;  // bytes, beyond any net.ipv4.tcp_rmem
constexpr uint32_t kMostScale = 14;       // RFC 7323
constexpr uint32_t kLeastMss = 48, kMostMss = 65535;
constexpr size_t kChunk = 32 << 10;
constexpr int kReceiveQueue = 1, kSendQueue = 2;  // enum of linux/tcp.h

// TCPOPT_* of <netinet/tcp.h>, which cannot be included beside the kernel's header.
constexpr uint32_t kOptionMss = 2, kOptionWindow = 3, kOptionSack = 4, kOptionTimestamp = 8;

using Ends = std::pair<InetAddress, InetAddress>;

int domain_of(const pb::TcpSocket& socket) { return socket.v6() ? AF_INET6 : AF_INET; }

InetAddress local_of(const pb::OpenFile& file) { return InetAddress::of(file.tcp().local()); }
InetAddress remote_of(const pb::OpenFile& file) { return InetAddress::of(file.tcp().remote()); }

std::string name_of(const pb::OpenFile& file) {
  return fmt::format("TCP connection {} to {}", local_of(file).text(), remote_of(file).text());
}

// Nobody had accepted it: it is made again by connecting.
bool is_pending(const pb::TcpSocket& socket) {
  return socket.state() == pb::TcpSocket::CONNECTED && socket.pending_of() != 0;
}

bool is_connection(const pb::TcpSocket& socket) {
  if (is_pending(socket)) return false;
  return socket.state() == pb::TcpSocket::CONNECTED || socket.state() == pb::TcpSocket::OUTSIDE;
}

// A connection to the outside can go on where its address is.
bool goes_on(const RestoreContext& context, const pb::OpenFile& file) {
  return file.tcp().state() != pb::TcpSocket::OUTSIDE ||
         (broker().privileged() && context.addresses.is_local(local_of(file)));
}

void check_address(const pb::OpenFile& file, const pb::InetAddress& address) {
  const bool fits = address.ip().size() == 4 || (address.ip().size() == 16 && file.tcp().v6());
  if (!fits || address.port() > UINT16_MAX) throw_bad_file(file, "a TCP socket has no usable address");
}

void check_values(const pb::OpenFile& file) {
  const pb::TcpSocket& socket = file.tcp();
  if (!pb::TcpSocket::State_IsValid(socket.state())) throw_bad_file(file, "a TCP socket is in no known state");
  const bool unused = socket.state() == pb::TcpSocket::UNCONNECTED || socket.state() == pb::TcpSocket::LISTENING;
  if (unused || is_connection(socket) || is_pending(socket)) check_address(file, socket.local());
  if (socket.backlog() > INT_MAX) throw_bad_file(file, "a TCP socket's backlog is out of range");
  if (socket.receive_queue().size() > kMostQueued || socket.send_queue().size() > kMostQueued) {
    throw_bad_file(file, "too much data waits in a TCP connection");
  }
  if (unused && (!socket.receive_queue().empty() || !socket.send_queue().empty())) {
    throw_bad_file(file, "data waits in an unconnected TCP socket");
  }
  if (is_pending(socket)) check_address(file, socket.remote());
  if (!is_connection(socket)) return;
  check_address(file, socket.remote());
  const bool same_size = socket.local().ip().size() == socket.remote().ip().size();
  if (!same_size || socket.local().port() == 0 || socket.remote().port() == 0) {
    throw_bad_file(file, "the addresses of a TCP connection do not fit each other");
  }
  if (socket.send_scale() > kMostScale || socket.receive_scale() > kMostScale || socket.mss() < kLeastMss ||
      socket.mss() > kMostMss || socket.send_window() > (kMostMss << kMostScale) ||
      socket.receive_window() > (kMostMss << kMostScale)) {
    throw_bad_file(file, "the parameters of a TCP connection are out of range");
  }
}

[[noreturn]] void throw_not_bound(const InetAddress& address, int error) {
  throw Error(ErrorKind::kSystem, fmt::format("cannot bind a TCP socket to {}: {}", address.text(), errno_text(error)),
              error, error == EADDRINUSE ? "end the program that uses the port, or restart on another node" : "");
}

void bind_to(RestoreContext& context, const pb::OpenFile& file, int fd, const InetAddress& address) {
  // Connections of the job's former life keep the port for a minute (TIME_WAIT).
  const auto end_former = [&] { broker().end_leftovers(address, {}, context.options.identity.uid); };
  if (bind_with_patience(context, fd, address, domain_of(file.tcp()), end_former)) return;
  throw_not_bound(address, errno);
}

// ---- sockets that are no connections -----------------------------------------------------------------------------

UniqueFd create_unused(RestoreContext& context, const pb::OpenFile& file) {
  const pb::TcpSocket& socket = file.tcp();
  UniqueFd fd = make_inet_socket(context, domain_of(socket), SOCK_STREAM);
  restore_socket_options(file, socket.options(), fd.get());
  restore_socket_buffers(socket.buffers(), fd.get());
  const InetAddress address = context.addresses.local(local_of(file));
  check_port(context, file, address.port);
  const bool listening = socket.state() == pb::TcpSocket::LISTENING;
  if (listening && address.port == 0) throw_bad_file(file, "a TCP socket listens without a port");
  if (address.port == 0) return fd;
  // A connection that is being rebuilt may have the port already: of another capsule that comes to this host.
  const int reuse = socket_option(fd.get(), SOL_SOCKET, SO_REUSEADDR);
  set_socket_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR");
  bind_to(context, file, fd.get(), address);
  // Now, not with the other things that show outside: listening is refused once a connection has the port.
  if (listening && ::listen(fd.get(), static_cast<int>(socket.backlog())) != 0) {
    throw_errno("cannot listen on {}", address.text());
  }
  set_socket_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, reuse, "SO_REUSEADDR");
  return fd;
}

// ---- connections whose other end is gone -------------------------------------------------------------------------

// The connection of `client`, which is there. Anybody of this host may have connected before it: such a one is closed.
UniqueFd accept_own(int listener, int client) {
  const InetAddress own = InetAddress::local_of(client);
  for (;;) {
    UniqueFd other(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!other && errno == ECONNABORTED) continue;
    if (!other) throw_errno("cannot make the other end of a closed TCP connection");
    const auto peer = InetAddress::peer_of(other.get());  // none: it has been reset already
    if (peer && peer->port == own.port) return other;
  }
}

// Bound to an IPv6 address, it is for IPv6 alone from then on.
bool is_v6_only(const pb::TcpSocket& socket) {
  return socket.v6() &&
         std::any_of(socket.options().begin(), socket.options().end(), [](const pb::SocketOption& option) {
           return option.level() == IPPROTO_IPV6 && option.name() == IPV6_V6ONLY && !option.value().empty() &&
                  option.value()[0] != 0;
         });
}

UniqueFd listen_on_loopback(int domain) {
  UniqueFd listener(::socket(domain, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const InetAddress any_port{domain == AF_INET6 ? std::string(15, '\0') + '\1' : std::string{127, 0, 0, 1}, 0};
  sockaddr_storage name;
  const socklen_t length = any_port.to_sockaddr(domain, name);
  if (!listener || ::bind(listener.get(), reinterpret_cast<sockaddr*>(&name), length) != 0 ||
      ::listen(listener.get(), SOMAXCONN) != 0)
    throw_errno("cannot make the other end of a closed TCP connection");
  return listener;
}

// A real connection over loopback whose other end says what was still to be read, and closes.
UniqueFd create_ended(RestoreContext& context, const pb::OpenFile& file) {
  const pb::TcpSocket& socket = file.tcp();
  const UniqueFd listener = listen_on_loopback(is_v6_only(socket) ? AF_INET6 : AF_INET);
  UniqueFd fd = make_inet_socket(context, domain_of(socket), SOCK_STREAM);
  restore_socket_options(file, socket.options(), fd.get());
  const std::string& data = socket.receive_queue();
  broker().widen_tcp_buffer(fd.get(), SO_RCVBUFFORCE, 4 * data.size() + kMostMss);
  const InetAddress target = InetAddress::local_of(listener.get());
  sockaddr_storage name;
  const socklen_t name_length = target.to_sockaddr(domain_of(socket), name);
  set_socket_option(fd.get(), IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), name_length) != 0) {
    throw_errno("cannot make a closed TCP connection again");
  }
  const UniqueFd other = accept_own(listener.get(), fd.get());
  broker().widen_tcp_buffer(other.get(), SO_SNDBUFFORCE, 4 * data.size() + kMostMss);
  if (!data.empty() &&
      ::send(other.get(), data.data(), data.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(data.size())) {
    throw_bad_file(file, "more data waits in a closed TCP connection than fits in");
  }
  if (socket.state() == pb::TcpSocket::RESET || socket.state() == pb::TcpSocket::OUTSIDE) {
    const linger at_once{1, 0};
    ::setsockopt(other.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  } else if (socket.shut_write()) {
    ::shutdown(other.get(), SHUT_WR);
    ::shutdown(fd.get(), SHUT_WR);
  }
  restore_socket_buffers(socket.buffers(), fd.get());
  return fd;
}

// ---- connections -------------------------------------------------------------------------------------------------

// One end under construction. Built in repair mode, in which the kernel sends nothing; let go in three steps, each for
// all ends before the next one, when nothing else can fail.
class Connection {
 public:
  Connection(RestoreContext& context, const pb::OpenFile& file, const pb::OpenFile* other)
      : context_(context), file_(file), socket_(file.tcp()), other_(other) {
    build();
  }

  // Data that the other end has already got is as sent: its acknowledgement finds it. `received`: the other end's.
  void refill_delivered() {
    const uint32_t first = first_unacknowledged(), received = received_by_other();
    delivered_ = received - first;
    if (delivered_ == 0) return;
    set(TCP_REPAIR_QUEUE, kSendQueue, "TCP_REPAIR_QUEUE");
    send_all(socket_.send_queue().data(), delivered_);
    // A FIN that is still to be sent would keep the kernel from sending again what is lost.
    if (socket_.state() == pb::TcpSocket::OUTSIDE && socket_.shut_write()) ::shutdown(fd_, SHUT_WR);
  }
  // The kernel asks the other end about its window.
  void leave_repair() {
    broker().set_tcp_repair(fd_, TCP_REPAIR_OFF);
    restore_reuse_address(socket_.options(), fd_);  // leaving has cleared it
  }
  void send_rest() {
    const std::string& queue = socket_.send_queue();
    if (delivered_ < queue.size()) send_all(queue.data() + delivered_, queue.size() - delivered_);
    if (socket_.shut_write()) ::shutdown(fd_, SHUT_WR);
    if (socket_.shut_read() && !(other_ && other_->tcp().shut_write())) ::shutdown(fd_, SHUT_RD);
    restore_socket_buffers(socket_.buffers(), fd_);
    restore_window_clamp(socket_.options(), fd_);
  }
  void finish() { restore_after_packets(socket_.options(), domain_of(socket_), fd_); }

 private:
  uint32_t first_unacknowledged() const { return socket_.sent() - static_cast<uint32_t>(socket_.send_queue().size()); }
  uint32_t received_by_other() const {
    if (other_) return other_->tcp().received();
    for (const ConnectionEnd& end : context_.other_ends)
      if (end.local == remote_of(file_) && end.remote == local_of(file_)) return end.received;
    return socket_.sent();  // check_connections() has been before
  }

  void set(int name, int value, const char* what) { set_socket_option(fd_, IPPROTO_TCP, name, value, what); }

  void build();
  void widen_buffers() {
    broker().widen_tcp_buffer(fd_, SO_RCVBUFFORCE, 4 * socket_.receive_queue().size() + kMostMss);
    broker().widen_tcp_buffer(fd_, SO_SNDBUFFORCE, 4 * socket_.send_queue().size() + kMostMss);
  }
  void join_addresses();
  void set_parameters();
  void refill_received();
  void send_all(const char* data, size_t bytes);

  RestoreContext& context_;
  const pb::OpenFile& file_;
  const pb::TcpSocket& socket_;
  const pb::OpenFile* other_;
  int fd_ = -1;  // the context's
  size_t delivered_ = 0;
};

void Connection::build() {
  UniqueFd made = make_inet_socket(context_, domain_of(socket_), SOCK_STREAM);
  fd_ = made.get();
  restore_socket_options(file_, socket_.options(), fd_);
  prepare_for_packets(socket_.options(), domain_of(socket_), fd_);
  broker().set_tcp_repair(fd_, TCP_REPAIR_ON);
  widen_buffers();
  const auto start = [&](int queue, uint32_t number) {
    set(TCP_REPAIR_QUEUE, queue, "TCP_REPAIR_QUEUE");
    set(TCP_QUEUE_SEQ, static_cast<int>(number), "TCP_QUEUE_SEQ");
  };
  // An end in the job says its FIN again. One outside has had it acknowledged: should we acknowledge less from now on,
  // it would take nothing more from us.
  const bool has_fin = socket_.state() == pb::TcpSocket::OUTSIDE && socket_.kernel_state() <= UINT8_MAX &&
                       has_received_fin(static_cast<uint8_t>(socket_.kernel_state()));
  const uint32_t received = socket_.received() + (has_fin ? 1 : 0);
  start(kReceiveQueue, received - static_cast<uint32_t>(socket_.receive_queue().size()));
  start(kSendQueue, first_unacknowledged());
  join_addresses();
  set_parameters();
  refill_received();
  context_.put(file_, std::move(made));
}

void Connection::join_addresses() {
  InetAddress local = context_.addresses.local(local_of(file_));
  InetAddress remote =
      other_ ? context_.addresses.local(remote_of(file_)) : context_.addresses.remote(remote_of(file_));
  const auto& known = context_.options.network.connections;
  if (const auto moved = known.find({local_of(file_), remote_of(file_)}); moved != known.end() && !other_) {
    std::tie(local, remote) = moved->second;
  }
  check_port(context_, file_, local.port);
  if (socket_.state() == pb::TcpSocket::OUTSIDE && !context_.options.dry) HeldConnections::release(local, remote);
  broker().end_leftovers(local, remote, context_.options.identity.uid);
  const InetAddress own = address_to_bind(local, remote, domain_of(socket_), fd_);
  if (const int error = broker().bind_in_repair(fd_, own, domain_of(socket_)); error != 0) throw_not_bound(own, error);
  context_.bound_ports.push_back({SOCK_STREAM, own.port, fd_});
  sockaddr_storage name;
  const socklen_t length = remote.to_sockaddr(domain_of(socket_), name);
  if (::connect(fd_, reinterpret_cast<sockaddr*>(&name), length) == 0) return;
  const int error = errno;
  throw Error(
      ErrorKind::kSystem,
      fmt::format("cannot rebuild {} as {} to {}: {}", name_of(file_), local.text(), remote.text(), errno_text(error)),
      error,
      error == EADDRNOTAVAIL ? "the same connection exists already: try again in a minute, or on more nodes" : "");
}

void Connection::set_parameters() {
  std::vector<tcp_repair_opt> options = {
      {kOptionMss, socket_.mss()},
      {kOptionWindow, socket_.send_scale() | socket_.receive_scale() << 16},
  };
  if (socket_.sack()) options.push_back({kOptionSack, 0});
  if (socket_.timestamps()) options.push_back({kOptionTimestamp, 0});
  if (::setsockopt(fd_, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options.data(),
                   static_cast<socklen_t>(options.size() * sizeof options[0])) != 0) {
    throw_errno("cannot set what {} has agreed on", name_of(file_));
  }
  if (socket_.timestamps()) set(TCP_TIMESTAMP, static_cast<int>(socket_.timestamp()), "TCP_TIMESTAMP");
}

// The window last: it may not end before what has been received.
void Connection::refill_received() {
  set(TCP_REPAIR_QUEUE, kReceiveQueue, "TCP_REPAIR_QUEUE");
  const std::string& queue = socket_.receive_queue();
  send_all(queue.data(), queue.size());
  tcp_repair_window window{};
  window.snd_wl1 = socket_.received();
  // A little less than it is: the other end's first answer widens it, and only then the kernel asks how large a segment
  // may be, which it has for the smallest one from before it knew (tcp_ack_update_window()).
  const uint32_t unit = 1u << socket_.send_scale();
  window.snd_wnd = socket_.send_window() > unit ? socket_.send_window() - unit : socket_.send_window();
  window.max_window = window.snd_wnd;
  window.rcv_wnd = socket_.receive_window();
  window.rcv_wup = socket_.received();
  if (::setsockopt(fd_, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, sizeof window) != 0) {
    throw_errno("cannot set the window of {}", name_of(file_));
  }
}

void Connection::send_all(const char* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t sent = ::send(fd_, data + done, std::min(bytes - done, kChunk), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) throw_errno("cannot put the data back into {}", name_of(file_));
    done += static_cast<size_t>(sent);
  }
}

using Connections = std::vector<std::unique_ptr<Connection>>;

std::map<Ends, const pb::OpenFile*> connections_of(const RestoreContext& context, ImageFiles files) {
  std::map<Ends, const pb::OpenFile*> all;
  for (const pb::OpenFile* file : files) {
    if (!is_connection(file->tcp()) || !goes_on(context, *file)) continue;
    if (!all.emplace(Ends{local_of(*file), remote_of(*file)}, file).second) {
      throw_bad_file(*file, name_of(*file) + " is in the image twice");
    }
  }
  return all;
}

void check_pending(ImageFiles files, const pb::OpenFile& file) {
  const pb::TcpSocket& socket = file.tcp();
  const auto listener = std::find_if(files.begin(), files.end(),
                                     [&](const pb::OpenFile* other) { return other->id() == socket.pending_of(); });
  const bool fits = listener != files.end() && (*listener)->tcp().state() == pb::TcpSocket::LISTENING &&
                    (*listener)->tcp().local().port() == socket.remote().port();
  if (!fits || !socket.receive_queue().empty() || !socket.send_queue().empty())
    throw_bad_file(file, name_of(file) + ", which nobody had accepted, does not fit what listens");
}

// What `receiver` has got must be something that `sender` has sent.
void check_order(const pb::OpenFile& sender, uint32_t received) {
  const auto waiting = static_cast<uint32_t>(sender.tcp().send_queue().size());
  if (sender.tcp().sent() - received > waiting) {
    throw_bad_file(sender, name_of(sender) + " does not fit its other end");
  }
}

}  // namespace

void create_tcp_sockets(RestoreContext& context, ImageFiles files) {
  for (const pb::OpenFile* file : files) {
    check_values(*file);
    if (is_pending(file->tcp())) check_pending(files, *file);
  }
  const std::map<Ends, const pb::OpenFile*> by_ends = connections_of(context, files);
  for (const auto& [ends, file] : by_ends) {
    const auto other = by_ends.find({ends.second, ends.first});
    if (other != by_ends.end()) {
      check_order(*file, other->second->tcp().received());
    } else if (file->tcp().state() == pb::TcpSocket::OUTSIDE) {
      continue;
    } else if (context.options.network.meet || context.options.dry) {
      context.open_ends.push_back({ends.first, ends.second, file->tcp().received()});
      context.open_files.push_back(file);
    } else {
      throw_bad_file(*file, name_of(*file) + " leads to a capsule that is not part of this restart");
    }
  }
  if (context.options.dry && !in_own_network()) {
    for (const pb::OpenFile* file : files) {
      warn_left_out(*file);
      context.put(*file, make_inet_socket(context, domain_of(file->tcp()), SOCK_STREAM));
    }
    return;
  }
  // A port can be listened on, and bound without SO_REUSEADDR, only before a connection has it.
  for (const pb::OpenFile* file : files) {
    const auto state = file->tcp().state();
    if (state == pb::TcpSocket::UNCONNECTED || state == pb::TcpSocket::LISTENING)
      context.put(*file, create_unused(context, *file));
  }
  const auto connections = std::make_shared<Connections>();
  for (const auto& [ends, file] : by_ends) {
    const auto other = by_ends.find({ends.second, ends.first});
    if (!broker().privileged()) {
      if (other == by_ends.end())
        throw_bad_file(*file, name_of(*file) + " leads to another part of the job, which takes root");
      if (ends.first < ends.second) reconnect(context, files, *file, *other->second);
      continue;
    }
    connections->push_back(
        std::make_unique<Connection>(context, *file, other == by_ends.end() ? nullptr : other->second));
  }
  for (const pb::OpenFile* file : files) {
    const auto state = file->tcp().state();
    const bool lost = state == pb::TcpSocket::OUTSIDE && !goes_on(context, *file);
    if (state == pb::TcpSocket::ENDED || state == pb::TcpSocket::RESET || lost)
      context.put(*file, create_ended(context, *file));
  }
  // After those that are accepted here.
  for (const pb::OpenFile* file : files)
    if (is_pending(file->tcp())) context.put(*file, connect_pending(context, *file));
  if (connections->empty()) return;
  context.later([connections] {
    for (const auto& connection : *connections) connection->refill_delivered();
    for (const auto& connection : *connections) connection->leave_repair();
    for (const auto& connection : *connections) connection->send_rest();
    for (const auto& connection : *connections) connection->finish();
  });
}

void check_connections(const RestoreContext& context) {
  std::map<Ends, uint32_t> others;
  for (const ConnectionEnd& end : context.other_ends) others.emplace(Ends{end.local, end.remote}, end.received);
  for (const pb::OpenFile* file : context.open_files) {
    const auto other = others.find({remote_of(*file), local_of(*file)});
    if (other == others.end()) throw_bad_file(*file, name_of(*file) + " has no other end in the job");
    check_order(*file, other->second);
  }
}

}  // namespace icp
