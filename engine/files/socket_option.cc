// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/socket_option.h"

#include <fcntl.h>
#include <linux/in6.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <climits>
#include <cstring>
#include <fstream>
#include <sstream>

#include "engine/base/error.h"

namespace icp {
namespace {

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif

constexpr size_t kMostBytes = 16;  // of a value: struct timeval, names of interfaces and algorithms

enum Applies { kAll, kTcp, kTcpUnused, kUdp };

struct Row {
  int level, name;
  Applies applies = kAll;
  int least = INT_MIN, most = INT_MAX;  // of an int
  size_t size = sizeof(int);            // bytes; kMostBytes: text
};

// Not here: what the kernel keeps to root (SO_MARK, SO_BUSY_POLL), and what cannot be asked (group memberships).
constexpr Row kRows[] = {
    {SOL_SOCKET, SO_REUSEADDR},
    {SOL_SOCKET, SO_REUSEPORT},
    {SOL_SOCKET, SO_KEEPALIVE},
    {SOL_SOCKET, SO_BROADCAST},
    {SOL_SOCKET, SO_DONTROUTE},
    {SOL_SOCKET, SO_OOBINLINE},
    {SOL_SOCKET, SO_RCVLOWAT},
    {SOL_SOCKET, SO_TIMESTAMP},
    {SOL_SOCKET, SO_TIMESTAMPNS},
    {SOL_SOCKET, SO_RXQ_OVFL},
    {SOL_SOCKET, SO_PRIORITY, kAll, 0, 6},  // more is root's
    {SOL_SOCKET, SO_LINGER, kAll, INT_MIN, INT_MAX, sizeof(linger)},
    {SOL_SOCKET, SO_RCVTIMEO, kAll, INT_MIN, INT_MAX, sizeof(timeval)},
    {SOL_SOCKET, SO_SNDTIMEO, kAll, INT_MIN, INT_MAX, sizeof(timeval)},
    {SOL_SOCKET, SO_BINDTODEVICE, kAll, INT_MIN, INT_MAX, kMostBytes},
    {IPPROTO_IP, IP_TOS},
    {IPPROTO_IP, IP_TTL},
    {IPPROTO_IP, IP_PKTINFO},
    {IPPROTO_IP, IP_MTU_DISCOVER},
    {IPPROTO_IP, IP_RECVERR},
    {IPPROTO_IP, IP_RECVTTL},
    {IPPROTO_IP, IP_RECVTOS},
    {IPPROTO_IP, IP_FREEBIND},
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT},
    {IPPROTO_IP, IP_MULTICAST_TTL, kUdp},
    {IPPROTO_IP, IP_MULTICAST_LOOP, kUdp},
    {IPPROTO_IPV6, IPV6_V6ONLY},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS},
    {IPPROTO_IPV6, IPV6_TCLASS},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT},
    {IPPROTO_IPV6, IPV6_RECVTCLASS},
    {IPPROTO_IPV6, IPV6_RECVERR},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER},
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS, kUdp},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP, kUdp},
    {IPPROTO_TCP, TCP_NODELAY, kTcp},
    {IPPROTO_TCP, TCP_CORK, kTcp},
    {IPPROTO_TCP, TCP_KEEPIDLE, kTcp},
    {IPPROTO_TCP, TCP_KEEPINTVL, kTcp},
    {IPPROTO_TCP, TCP_KEEPCNT, kTcp},
    {IPPROTO_TCP, TCP_SYNCNT, kTcp},
    {IPPROTO_TCP, TCP_LINGER2, kTcp},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, kTcp},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT, kTcp},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT, kTcpUnused},
    {IPPROTO_TCP, TCP_MAXSEG, kTcpUnused},
    {IPPROTO_TCP, TCP_FASTOPEN, kTcpUnused},
    {IPPROTO_TCP, TCP_CONGESTION, kTcp, INT_MIN, INT_MAX, kMostBytes},
};

bool is_name(const Row& row) { return row.size == kMostBytes && row.name != SO_RCVTIMEO && row.name != SO_SNDTIMEO; }

// Nothing when the socket has no such option.
std::optional<std::string> get(int fd, const Row& row) {
  std::array<char, kMostBytes> value{};
  auto length = static_cast<socklen_t>(row.size);
  if (::getsockopt(fd, row.level, row.name, value.data(), &length) != 0) return {};
  std::string bytes(value.data(), length);
  if (is_name(row)) bytes.resize(::strnlen(bytes.data(), bytes.size()));
  return bytes;
}

bool applies(const Row& row, int type, bool connected) {
  switch (row.applies) {
    case kTcp:
      return type == SOCK_STREAM;
    case kTcpUnused:
      return type == SOCK_STREAM && !connected;
    case kUdp:
      return type == SOCK_DGRAM;
    case kAll:
      break;
  }
  return true;
}

// Root may choose, and even load, any algorithm; a user only these.
bool allowed_congestion_control(const std::string& name) {
  std::ifstream file("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
  for (std::string known; file >> known;)
    if (known == name) return true;
  return false;
}

const Row* find_row(const pb::SocketOption& option) {
  for (const Row& row : kRows)
    if (static_cast<uint32_t>(row.level) == option.level() && static_cast<uint32_t>(row.name) == option.name())
      return &row;
  return nullptr;
}

bool fits(const Row& row, const std::string& value) {
  if (is_name(row)) return value.size() < kMostBytes && value.find('\0') == std::string::npos;
  if (row.size != sizeof(int)) return value.size() == row.size;
  if (value.size() != sizeof(int)) return value.size() == 1;  // some multicast options
  int number = 0;
  std::memcpy(&number, value.data(), sizeof number);
  return number >= row.least && number <= row.most;
}

}  // namespace

int socket_option(int fd, int level, int name) {
  int value = 0;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, level, name, &value, &length) == 0 ? value : 0;
}

void set_socket_option(int fd, int level, int name, int value, const char* what) {
  if (::setsockopt(fd, level, name, &value, sizeof value) != 0) throw_errno("cannot set {} of a socket", what);
}

void capture_socket_options(int fd, bool connected, SocketOptions& options) {
  const int type = socket_option(fd, SOL_SOCKET, SO_TYPE);
  const UniqueFd unused(::socket(socket_option(fd, SOL_SOCKET, SO_DOMAIN), type | SOCK_CLOEXEC, 0));
  if (!unused) throw_errno("cannot make a socket to compare with");
  for (const Row& row : kRows) {
    if (!applies(row, type, connected)) continue;
    const auto value = get(fd, row);
    if (!value || value == get(unused.get(), row)) continue;
    pb::SocketOption& option = *options.Add();
    option.set_level(static_cast<uint32_t>(row.level));
    option.set_name(static_cast<uint32_t>(row.name));
    option.set_value(*value);
  }
}

void restore_socket_options(const pb::OpenFile& file, const SocketOptions& options, int fd) {
  for (const pb::SocketOption& option : options) {
    const Row* row = find_row(option);
    if (!row || !fits(*row, option.value())) {
      throw_bad_file(file, fmt::format("a socket option {} of level {} that no program can have set", option.name(),
                                       option.level()));
    }
    const std::string& value = option.value();
    if (row->name == TCP_CONGESTION && row->level == IPPROTO_TCP && !allowed_congestion_control(value)) continue;
    if (::setsockopt(fd, row->level, row->name, value.data(), static_cast<socklen_t>(value.size())) != 0) {
      throw_bad_file(file, fmt::format("socket option {} of level {} cannot be set: {}", option.name(), option.level(),
                                       errno_text(errno)));
    }
  }
}

void capture_socket_buffers(int fd, pb::SocketBuffers& buffers) {
  buffers.set_send(static_cast<uint32_t>(socket_option(fd, SOL_SOCKET, SO_SNDBUF)));
  buffers.set_receive(static_cast<uint32_t>(socket_option(fd, SOL_SOCKET, SO_RCVBUF)));
  buffers.set_locked(static_cast<uint32_t>(socket_option(fd, SOL_SOCKET, SO_BUF_LOCK)));
}

// getsockopt() tells twice what setsockopt() wants, socket(7). Beyond the system's limit: as much as a program could
// set.
void restore_socket_buffers(const pb::SocketBuffers& buffers, int fd) {
  const auto set = [fd](int force, int plain, uint32_t value) {
    const int half = static_cast<int>(std::min<uint32_t>(value, INT_MAX) / 2);
    if (half == 0 || ::setsockopt(fd, SOL_SOCKET, force, &half, sizeof half) == 0) return;
    ::setsockopt(fd, SOL_SOCKET, plain, &half, sizeof half);
  };
  set(SO_SNDBUFFORCE, SO_SNDBUF, buffers.send());
  set(SO_RCVBUFFORCE, SO_RCVBUF, buffers.receive());
  const int locked = static_cast<int>(buffers.locked() & 3);  // setting them has locked both
  ::setsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &locked, sizeof locked);
}

UniqueFd make_inet_socket(const RestoreContext& context, int domain, int type) {
  const FsIdentity as_user(context.options.identity);
  UniqueFd fd(::socket(domain, type | SOCK_CLOEXEC, 0));
  if (!fd) throw_errno("cannot make a socket");
  return fd;
}

void check_port(const RestoreContext& context, const pb::OpenFile& file, uint16_t port) {
  static const int first_free = [] {
    int first = 1024;
    std::ifstream("/proc/sys/net/ipv4/ip_unprivileged_port_start") >> first;
    return first;
  }();
  if (port == 0 || port >= first_free || context.options.identity.uid == 0) return;
  throw_bad_file(file, fmt::format("user {} may not use port {}", context.options.identity.uid, port));
}

uint64_t network_namespace_of(int fd) {
  const UniqueFd space(::ioctl(fd, SIOCGSKNS));
  struct stat status {};
  return space && ::fstat(space.get(), &status) == 0 ? status.st_ino : 0;
}

uint64_t own_network_namespace() {
  struct stat status {};
  return ::stat("/proc/self/ns/net", &status) == 0 ? status.st_ino : 0;
}

}  // namespace icp
