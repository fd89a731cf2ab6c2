// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/packet_options.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace icp {
namespace {

struct Option {
  int level, name, unused;  // what an unused socket has
};
constexpr Option kNotesInterface{IPPROTO_IPV6, IPV6_RECVPKTINFO, 0}, kNotesHops{IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 0},
    kHops{IPPROTO_IPV6, IPV6_UNICAST_HOPS, -1}, kProcessor{SOL_SOCKET, SO_INCOMING_CPU, -1};

int saved(const SocketOptions& options, const Option& option) {
  for (const pb::SocketOption& one : options) {
    int value = 0;
    if (static_cast<int>(one.level()) != option.level || static_cast<int>(one.name()) != option.name ||
        one.value().size() != sizeof value)
      continue;
    std::memcpy(&value, one.value().data(), sizeof value);
    return value;
  }
  return option.unused;
}

// They have been set once: that they can be is known.
void set(int fd, const Option& option, int value) { ::setsockopt(fd, option.level, option.name, &value, sizeof value); }

bool has_noted(const SocketOptions& options) {
  return std::any_of(options.begin(), options.end(), [](const pb::SocketOption& option) {
    return option.level() == IPPROTO_IPV6 &&
           (option.name() == IPV6_MULTICAST_HOPS || option.name() == IPV6_MULTICAST_IF);
  });
}

}  // namespace

void prepare_for_packets(const SocketOptions& options, int domain, int fd) {
  if (domain != AF_INET6) return;
  set(fd, kHops, kHops.unused);
  for (const Option& notes : {kNotesInterface, kNotesHops}) set(fd, notes, has_noted(options) ? 1 : 0);
}

void restore_after_packets(const SocketOptions& options, int domain, int fd) {
  if (const int processor = saved(options, kProcessor); processor != kProcessor.unused) set(fd, kProcessor, processor);
  if (domain != AF_INET6) return;
  for (const Option& option : {kNotesInterface, kNotesHops, kHops}) set(fd, option, saved(options, option));
}

InetAddress address_to_bind(const InetAddress& local, const InetAddress& remote, int domain, int fd) {
  if (domain != AF_INET6 || local.ip.size() != 16 || local.any() || socket_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) != 0)
    return local;
  const UniqueFd probe(::socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_storage name;
  const socklen_t length = remote.to_sockaddr(AF_INET6, name);
  if (!probe || length == 0 || ::connect(probe.get(), reinterpret_cast<sockaddr*>(&name), length) != 0 ||
      InetAddress::local_of(probe.get()).ip != local.ip)
    return local;
  return {std::string(16, '\0'), local.port, 0};
}

}  // namespace icp
