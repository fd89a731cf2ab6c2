// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/tcp_reconnect.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <thread>

#include "engine/base/error.h"
#include "engine/broker/broker.h"
#include "engine/files/socket_option.h"
#include "engine/files/tcp_repair.h"

namespace icp {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kPause(20);
// A former life's connection of the same addresses can be followed by a new one a second after its end
// (net.ipv4.tcp_tw_reuse, which is on for loopback), otherwise after a minute.
constexpr int kConnectTries = 150;
constexpr int kBindTries = 100;
constexpr milliseconds kDelivery(10'000);
constexpr size_t kSmallQueue = 32 << 10;  // bytes that fit into any receive buffer

// What a user can have waiting in a connection: net.core.rmem_max, of which the kernel takes twice for its own needs.
size_t most_waiting() {
  size_t most = 0;
  std::ifstream("/proc/sys/net/core/rmem_max") >> most;
  return std::max(most, kSmallQueue);
}

InetAddress local_of(const RestoreContext& context, const pb::OpenFile& file) {
  return context.addresses.local(InetAddress::of(file.tcp().local()));
}

int domain_of(const pb::OpenFile& file) { return file.tcp().v6() ? AF_INET6 : AF_INET; }

// What is left of the connection's former life may keep the port for a minute, and only root can end that. Both ends
// are in the capsule, and what one tells the other of its port is seldom more than where to listen: a port that stays
// taken is exchanged for another one. Returns the address that it is bound to.
InetAddress bind_reusing(int fd, const pb::OpenFile& file, InetAddress address) {
  set_socket_option(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR");
  for (int tries = 0;; ++tries) {
    sockaddr_storage name;
    const socklen_t length = address.to_sockaddr(domain_of(file), name);
    if (::bind(fd, reinterpret_cast<sockaddr*>(&name), length) == 0) return InetAddress::local_of(fd);
    if (errno != EADDRINUSE || address.port == 0) throw_errno("cannot bind a TCP socket to {}", address.text());
    if (tries < kBindTries) {
      std::this_thread::sleep_for(kPause);
      continue;
    }
    spdlog::warn("the port of {} is still taken: the TCP connection gets another one", address.text());
    address.port = 0;
  }
}

// The listening socket of the image that a connection to `address` would come to; -1 when there is none.
int listener_of(const RestoreContext& context, ImageFiles all, const InetAddress& address) {
  for (const pb::OpenFile* file : all) {
    if (file->tcp().state() != pb::TcpSocket::LISTENING) continue;
    const InetAddress local = local_of(context, *file);
    if (local.port == address.port && (local.any() || local.ip == address.ip)) return context.get(file->id());
  }
  return -1;
}

// A buffer that was made larger than what a connection starts with has to be that before it connects.
void make_room(int fd, const pb::OpenFile& file) {
  const size_t bytes = file.tcp().receive_queue().size();
  if (bytes > kSmallQueue)
    set_socket_option(fd, SOL_SOCKET, SO_RCVBUF, static_cast<int>(std::min(2 * bytes, most_waiting())), "SO_RCVBUF");
}

UniqueFd connect_from(RestoreContext& context, const pb::OpenFile& file, const InetAddress& remote) {
  for (int tries = 0;; ++tries) {
    UniqueFd fd = make_inet_socket(context, domain_of(file), SOCK_STREAM);
    restore_socket_options(file, file.tcp().options(), fd.get());
    make_room(fd.get(), file);
    const InetAddress wanted = local_of(context, file);
    check_port(context, file, wanted.port);
    const InetAddress local = bind_reusing(fd.get(), file, wanted);
    sockaddr_storage name;
    const socklen_t length = remote.to_sockaddr(domain_of(file), name);
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), length) == 0) return fd;
    const int error = errno;
    if (error != EADDRNOTAVAIL || tries == kConnectTries) {
      throw Error(ErrorKind::kSystem,
                  fmt::format("cannot connect {} to {} again: {}", local.text(), remote.text(), errno_text(error)),
                  error, error == EADDRNOTAVAIL ? "the same connection exists already: try again in a minute" : "");
    }
    std::this_thread::sleep_for(kPause);
  }
}

// The one connection that has just been made to it: others than `remote` are none of ours, and closed.
UniqueFd accept_from(int listener, const InetAddress& remote) {
  for (;;) {
    pollfd wait{listener, POLLIN, 0};
    if (::poll(&wait, 1, static_cast<int>(kDelivery.count())) != 1)
      throw_error(ErrorKind::kSystem, "the connection from {} did not arrive", remote.text());
    UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd && errno != EAGAIN && errno != ECONNABORTED) throw_errno("cannot accept a TCP connection again");
    if (!fd) continue;
    const auto peer = InetAddress::peer_of(fd.get());
    if (peer && *peer == remote) return fd;
  }
}

void deliver(int from, int to, const pb::OpenFile& file) {
  const std::string& data = file.tcp().receive_queue();
  const auto late = std::chrono::steady_clock::now() + kDelivery;
  for (size_t sent = 0; bytes_waiting(to) < data.size();) {
    const ssize_t done =
        sent == data.size() ? 0 : ::send(from, data.data() + sent, data.size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (done < 0 && errno != EAGAIN && errno != EINTR) throw_errno("cannot put the data back into a TCP connection");
    if (done > 0) {
      sent += static_cast<size_t>(done);
      continue;
    }
    if (std::chrono::steady_clock::now() > late)
      throw_bad_file(file, "more data waits in a TCP connection than a user can put there");
    std::this_thread::sleep_for(milliseconds(1));
  }
}

// Those of an accepted connection that can be changed.
SocketOptions accepted_options(const pb::OpenFile& file) {
  SocketOptions options;
  for (const pb::SocketOption& option : file.tcp().options())
    if (option.level() != IPPROTO_IPV6 || option.name() != IPV6_V6ONLY) *options.Add() = option;
  return options;
}

// Afterwards, what was only needed to connect.
void finish_end(const pb::OpenFile& file, const pb::OpenFile& other, int fd) {
  const pb::TcpSocket& socket = file.tcp();
  if (socket.shut_write()) ::shutdown(fd, SHUT_WR);
  if (socket.shut_read() && !other.tcp().shut_write()) ::shutdown(fd, SHUT_RD);
  restore_reuse_address(socket.options(), fd);
  restore_socket_buffers(socket.buffers(), fd);
}

}  // namespace

std::string cannot_reconnect(int fd, const TcpFacts& facts, const TcpFacts& other) {
  // A FIN counts as a byte where it came with data.
  const uint64_t fin = other.received_fin ? 1 : 0;
  if (facts.unsent != 0 || other.received_bytes < facts.sent_bytes || other.received_bytes > facts.sent_bytes + fin)
    return "with data on its way";
  const size_t waiting = bytes_waiting(fd), most = most_waiting();
  return waiting > most
             ? fmt::format("in which {} bytes wait to be read (without root {} can be put back)", waiting, most)
             : "";
}

void reconnect(RestoreContext& context, ImageFiles all, const pb::OpenFile& one, const pb::OpenFile& other) {
  if (!one.tcp().send_queue().empty() || !other.tcp().send_queue().empty()) {
    throw Error(ErrorKind::kImage, "a TCP connection had data on its way, which takes root to put back", 0,
                "restart as root");
  }
  const pb::OpenFile *from = &one, *to = &other;
  if (listener_of(context, all, local_of(context, *to)) < 0 && listener_of(context, all, local_of(context, *from)) >= 0)
    std::swap(from, to);
  InetAddress target = local_of(context, *to);
  int listener = listener_of(context, all, target);
  UniqueFd own;
  if (listener < 0) {
    own = make_inet_socket(context, domain_of(*to), SOCK_STREAM);
    make_room(own.get(), *to);
    check_port(context, *to, target.port);
    target = bind_reusing(own.get(), *to, target);
    if (::listen(own.get(), 1) != 0) throw_errno("cannot listen on {}", target.text());
    listener = own.get();
  }
  UniqueFd first = connect_from(context, *from, target);
  UniqueFd second = accept_from(listener, InetAddress::local_of(first.get()));
  restore_socket_options(*to, accepted_options(*to), second.get());
  const int first_fd = first.get(), second_fd = second.get();
  context.put(*from, std::move(first));
  context.put(*to, std::move(second));
  context.later([=] {
    deliver(first_fd, second_fd, *to);
    deliver(second_fd, first_fd, *from);
    finish_end(*from, *to, first_fd);
    finish_end(*to, *from, second_fd);
  });
}

UniqueFd connect_pending(RestoreContext& context, const pb::OpenFile& file) {
  const InetAddress remote = context.addresses.local(InetAddress::of(file.tcp().remote()));
  tcp_info queue{};  // of a listening socket: how many wait, and how many may
  socklen_t length = sizeof queue;
  if (::getsockopt(context.get(file.tcp().pending_of()), IPPROTO_TCP, TCP_INFO, &queue, &length) != 0 ||
      queue.tcpi_unacked > queue.tcpi_sacked)  // connect() would wait for ever
    throw_bad_file(file, fmt::format("more connections wait at {} than its queue takes", remote.text()));
  broker().end_leftovers(local_of(context, file), remote, context.options.identity.uid);
  UniqueFd fd = connect_from(context, file, remote);
  restore_reuse_address(file.tcp().options(), fd.get());
  restore_socket_buffers(file.tcp().buffers(), fd.get());
  return fd;
}

}  // namespace icp
