// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/socket_option.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/in6.h>
#include <linux/netlink.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <climits>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/base/error.h"

namespace icp {
namespace {

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif

constexpr size_t kMostIpOptions = 40;  // bytes, RFC 791
constexpr size_t kMostBytes = 16;      // of a value: struct timeval, names of interfaces and algorithms

// kUdp: raw sockets, too; kPackets: kUdp, and what packets leave in a connection
enum Applies { kAll, kTcp, kTcpUnused, kUdp, kPackets, kRaw };

struct Row {
  int level, name;
  Applies applies = kAll;
  int least = INT_MIN, most = INT_MAX;  // of an int
  size_t size = sizeof(int);            // bytes; kMostBytes: text
  const char* root = nullptr;           // its name, if only root may set it
};

// Not here: what cannot be asked (group memberships), and what packets change (TCP_QUICKACK).
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
    {SOL_SOCKET, SO_SELECT_ERR_QUEUE},
    {SOL_SOCKET, SO_NOFCS},
    {SOL_SOCKET, SO_ZEROCOPY},
    {SOL_SOCKET, SO_TIMESTAMPING},
    {SOL_SOCKET, SO_MAX_PACING_RATE},
    {SOL_SOCKET, SO_PASSSEC},
    {SOL_SOCKET, 76},        // SO_PASSPIDFD
    {SOL_SOCKET, 74, kTcp},  // SO_TXREHASH
    {SOL_SOCKET, SO_PEEK_OFF, kUdp},
    {SOL_SOCKET, SO_NO_CHECK},
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
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS, kPackets},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP, kUdp},
    {IPPROTO_IP, IP_RECVOPTS, kUdp},
    {IPPROTO_IP, IP_RETOPTS, kUdp},
    {IPPROTO_IP, IP_PASSSEC},
    {IPPROTO_IP, IP_RECVORIGDSTADDR, kUdp},
    {IPPROTO_IP, IP_MINTTL},
    {IPPROTO_IP, IP_CHECKSUM, kUdp},
    {IPPROTO_IP, 25, kUdp},  // IP_RECVFRAGSIZE
    {IPPROTO_IP, 26, kUdp},  // IP_RECVERR_RFC4884
    {IPPROTO_IP, IP_MULTICAST_ALL, kUdp},
    {IPPROTO_IP, IP_UNICAST_IF},
    {IPPROTO_IP, 51},  // IP_LOCAL_PORT_RANGE
    {IPPROTO_IP, IP_HDRINCL, kRaw},
    {IPPROTO_IP, 22, kRaw},  // IP_NODEFRAG
    {IPPROTO_IPV6, IPV6_CHECKSUM, kRaw},
    {IPPROTO_RAW, 1, kRaw},                           // ICMP_FILTER
    {IPPROTO_ICMPV6, 1, kRaw, INT_MIN, INT_MAX, 32},  // ICMPV6_FILTER
    {IPPROTO_UDPLITE, 10, kUdp},                      // UDPLITE_SEND_CSCOV
    {IPPROTO_UDPLITE, 11, kUdp},                      // UDPLITE_RECV_CSCOV
    {SOL_NETLINK, NETLINK_PKTINFO},
    {SOL_NETLINK, NETLINK_BROADCAST_ERROR},
    {SOL_NETLINK, NETLINK_NO_ENOBUFS},
    {SOL_NETLINK, NETLINK_CAP_ACK},
    {SOL_NETLINK, NETLINK_EXT_ACK},
    {SOL_NETLINK, NETLINK_GET_STRICT_CHK},
    {IPPROTO_UDP, 101, kUdp},  // UDP_NO_CHECK6_TX
    {IPPROTO_UDP, 102, kUdp},  // UDP_NO_CHECK6_RX
    {IPPROTO_UDP, 103, kUdp},  // UDP_SEGMENT
    {IPPROTO_UDP, 104, kUdp},  // UDP_GRO
    {IPPROTO_IPV6, IPV6_MULTICAST_IF, kPackets},
    {IPPROTO_IPV6, IPV6_RECVRTHDR},
    {IPPROTO_IPV6, IPV6_RECVPATHMTU},
    {IPPROTO_IPV6, IPV6_DONTFRAG},
    {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL},
    {IPPROTO_IPV6, IPV6_ADDR_PREFERENCES},
    {IPPROTO_IPV6, IPV6_MINHOPCOUNT},
    {IPPROTO_IPV6, 78},        // IPV6_FREEBIND
    {IPPROTO_IPV6, 29, kUdp},  // IPV6_MULTICAST_ALL
    {IPPROTO_IPV6, IPV6_UNICAST_IF},
    {IPPROTO_IPV6, 77},  // IPV6_RECVFRAGSIZE
    {IPPROTO_IPV6, 33},  // IPV6_FLOWINFO_SEND
    {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, kTcp},
    {IPPROTO_TCP, TCP_SAVE_SYN, kTcp},
    {IPPROTO_TCP, TCP_WINDOW_CLAMP, kTcp},
    {IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, kTcp},
    {IPPROTO_TCP, TCP_INQ, kTcp},
    {IPPROTO_TCP, 44, kTcp},  // TCP_RTO_MAX_MS
    {IPPROTO_TCP, 46, kTcp},  // TCP_DELACK_MAX_US
    {IPPROTO_IP, IP_OPTIONS, kAll, INT_MIN, INT_MAX, kMostIpOptions},
    {IPPROTO_IP, IP_MULTICAST_IF, kUdp},
    {IPPROTO_IP, IP_TRANSPARENT, kAll, INT_MIN, INT_MAX, sizeof(int), "IP_TRANSPARENT"},
    {IPPROTO_IPV6, IPV6_TRANSPARENT, kAll, INT_MIN, INT_MAX, sizeof(int), "IPV6_TRANSPARENT"},
    {SOL_SOCKET, SO_INCOMING_CPU},
    {SOL_SOCKET, SO_MARK, kAll, INT_MIN, INT_MAX, sizeof(int), "SO_MARK"},
    {SOL_SOCKET, SO_BUSY_POLL, kAll, INT_MIN, INT_MAX, sizeof(int), "SO_BUSY_POLL"},
    {SOL_SOCKET, 69, kAll, INT_MIN, INT_MAX, sizeof(int), "SO_PREFER_BUSY_POLL"},
    {SOL_SOCKET, 75, kAll, INT_MIN, INT_MAX, sizeof(int), "SO_RCVMARK"},
    {SOL_SOCKET, 82},               // SO_RCVPRIORITY
    {SOL_SOCKET, 73, kTcp},         // SO_RESERVE_MEM
    {IPPROTO_TCP, 30, kTcpUnused},  // TCP_FASTOPEN_CONNECT
    {IPPROTO_TCP, 37, kTcpUnused},  // TCP_TX_DELAY
    {IPPROTO_TCP, 45, kTcp},        // TCP_RTO_MIN_US
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

bool is_name(const Row& row) {
  return row.size == kMostBytes && (row.level != SOL_SOCKET || (row.name != SO_RCVTIMEO && row.name != SO_SNDTIMEO));
}

// Nothing when the socket has no such option.
std::optional<std::string> get(int fd, const Row& row) {
  std::array<char, kMostIpOptions> value{};
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
      return type != SOCK_STREAM;
    case kPackets:
      return type != SOCK_STREAM || connected;
    case kRaw:
      return type == SOCK_RAW;
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
  if (row.size == kMostIpOptions) return value.size() <= kMostIpOptions;
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

void check_socket_options(FileScan& scan, Description& description) {
  const int fd = scan.take(description);
  if (fd < 0) return;
  socklen_t instructions = 0;
  if (::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, nullptr, &instructions) != 0 && errno == EACCES) {
    scan.refuse(description, "socket with an eBPF program (SO_ATTACH_BPF)",
                "use a classic filter (SO_ATTACH_FILTER), or none");
  }
  if (::geteuid() == 0) return;
  for (const Row& row : kRows) {
    if (row.root == nullptr) continue;
    const auto value = get(fd, row);
    if (value && value->find_first_not_of('\0') != std::string::npos)
      scan.refuse(description, fmt::format("socket with {}, which only root can set", row.root), "unset it");
  }
  const int priority = socket_option(fd, SOL_SOCKET, SO_PRIORITY);
  if (priority < 0 || priority > 6)
    scan.refuse(description, fmt::format("socket with SO_PRIORITY {}, which only root can set", priority),
                "use 0 to 6");
}

namespace {

// What an unused socket of the kind has, in the order of the rows.
const std::vector<std::optional<std::string>>& unused_values(int domain, int type, int protocol) {
  static std::map<std::tuple<int, int, int>, std::vector<std::optional<std::string>>> known;
  std::vector<std::optional<std::string>>& values = known[{domain, type, protocol}];
  if (!values.empty()) return values;
  const UniqueFd unused(::socket(domain, type | SOCK_CLOEXEC, protocol));
  if (!unused) throw_errno("cannot make a socket to compare with");
  for (const Row& row : kRows) values.push_back(get(unused.get(), row));
  return values;
}

bool is_plain(const Row& row) { return row.level == SOL_NETLINK || row.level == SOL_SOCKET; }

// Classic filters: instructions of 8 bytes. getsockopt counts them by number.
void capture_filter(int fd, SocketOptions& options) {
  socklen_t instructions = 0;
  if (::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, nullptr, &instructions) != 0 || instructions == 0) return;
  std::string program(instructions * sizeof(sock_filter), '\0');
  if (::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, program.data(), &instructions) != 0) return;
  pb::SocketOption& option = *options.Add();
  option.set_level(SOL_SOCKET);
  option.set_name(SO_ATTACH_FILTER);
  option.set_value(std::move(program));
  if (socket_option(fd, SOL_SOCKET, SO_LOCK_FILTER) == 0) return;
  pb::SocketOption& lock = *options.Add();
  lock.set_level(SOL_SOCKET);
  lock.set_name(SO_LOCK_FILTER);
  const int on = 1;
  lock.set_value(std::string(reinterpret_cast<const char*>(&on), sizeof on));
}

bool is_filter(const pb::SocketOption& option) {
  return option.level() == SOL_SOCKET && (option.name() == SO_ATTACH_FILTER || option.name() == SO_LOCK_FILTER);
}

void restore_filter(const pb::OpenFile& file, const pb::SocketOption& option, int fd) {
  const std::string& value = option.value();
  if (option.name() == SO_LOCK_FILTER) {
    set_socket_option(fd, SOL_SOCKET, SO_LOCK_FILTER, 1, "SO_LOCK_FILTER");
    return;
  }
  if (value.empty() || value.size() % sizeof(sock_filter) != 0 || value.size() / sizeof(sock_filter) > BPF_MAXINSNS) {
    throw_bad_file(file, "a socket filter that no program can have set");
  }
  std::vector<sock_filter> program(value.size() / sizeof(sock_filter));
  std::memcpy(program.data(), value.data(), value.size());
  const sock_fprog attach{static_cast<unsigned short>(program.size()), program.data()};
  if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &attach, sizeof attach) != 0) {
    throw_bad_file(file, fmt::format("its socket filter cannot be set: {}", errno_text(errno)));
  }
}

}  // namespace

void capture_socket_options(int fd, bool connected, SocketOptions& options) {
  const int type = socket_option(fd, SOL_SOCKET, SO_TYPE), domain = socket_option(fd, SOL_SOCKET, SO_DOMAIN);
  const auto& unused = unused_values(domain, type, socket_option(fd, SOL_SOCKET, SO_PROTOCOL));
  const bool plain = domain == AF_UNIX || domain == AF_NETLINK;  // without the options of a network protocol
  for (size_t i = 0; i < std::size(kRows); ++i) {
    const Row& row = kRows[i];
    if (!unused[i] || (plain ? !is_plain(row) : !applies(row, type, connected))) continue;
    const auto value = get(fd, row);
    if (!value || value == unused[i]) continue;
    pb::SocketOption& option = *options.Add();
    option.set_level(static_cast<uint32_t>(row.level));
    option.set_name(static_cast<uint32_t>(row.name));
    option.set_value(*value);
  }
  capture_filter(fd, options);
}

static bool is_window_clamp(const pb::SocketOption& option) {
  return option.level() == IPPROTO_TCP && option.name() == TCP_WINDOW_CLAMP;
}

void restore_window_clamp(const SocketOptions& options, int fd) {
  for (const pb::SocketOption& option : options)
    if (is_window_clamp(option))
      ::setsockopt(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, option.value().data(),
                   static_cast<socklen_t>(option.value().size()));
}

void restore_socket_options(const pb::OpenFile& file, const SocketOptions& options, int fd) {
  const bool stream = socket_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM;
  for (const pb::SocketOption& option : options) {
    if (is_filter(option)) {
      restore_filter(file, option, fd);
      continue;
    }
    const Row* row = find_row(option);
    if (!row || !fits(*row, option.value())) {
      throw_bad_file(file, fmt::format("a socket option {} of level {} that no program can have set", option.name(),
                                       option.level()));
    }
    const std::string& value = option.value();
    if (row->applies == kPackets && stream) continue;                                         // prepare_for_packets()
    if (is_window_clamp(option) && file.tcp().state() == pb::TcpSocket::CONNECTED) continue;  // later
    if (row->name == TCP_CONGESTION && row->level == IPPROTO_TCP && !allowed_congestion_control(value)) continue;
    if (::setsockopt(fd, row->level, row->name, value.data(), static_cast<socklen_t>(value.size())) != 0) {
      throw_bad_file(file, fmt::format("socket option {} of level {} cannot be set: {}", option.name(), option.level(),
                                       errno_text(errno)));
    }
  }
}

void restore_reuse_address(const SocketOptions& options, int fd) {
  const bool reuse = std::any_of(options.begin(), options.end(), [](const pb::SocketOption& option) {
    return option.level() == SOL_SOCKET && option.name() == SO_REUSEADDR;
  });
  set_socket_option(fd, SOL_SOCKET, SO_REUSEADDR, reuse ? 1 : 0, "SO_REUSEADDR");
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

UniqueFd make_inet_socket(const RestoreContext& context, int domain, int type, int protocol) {
  const FsIdentity as_user(context.options.identity);
  UniqueFd fd(::socket(domain, type | SOCK_CLOEXEC, protocol));
  if (!fd) throw_errno("cannot make a socket");
  return fd;
}

int first_unprivileged_port() {
  static const int first_free = [] {
    int first = 1024;
    std::ifstream("/proc/sys/net/ipv4/ip_unprivileged_port_start") >> first;
    return first;
  }();
  return first_free;
}

void check_port(const RestoreContext& context, const pb::OpenFile& file, uint16_t port) {
  if (port == 0 || port >= first_unprivileged_port() || context.options.identity.uid == 0) return;
  throw_bad_file(file, fmt::format("user {} may not use port {}", context.options.identity.uid, port));
}

void warn_left_out(const pb::OpenFile& file) {
  spdlog::warn("{} was left out, whose port is in use: a network namespace would take root", image_file_name(file));
}

bool bind_shared(RestoreContext& context, int fd, const sockaddr_storage& name, socklen_t length, uint16_t port) {
  const int type = socket_option(fd, SOL_SOCKET, SO_TYPE);
  const auto bind_it = [&] { return ::bind(fd, reinterpret_cast<const sockaddr*>(&name), length) == 0; };
  bool done = bind_it();
  if (!done && errno == EADDRINUSE) {
    std::vector<int> sharers{fd};
    for (const BoundPort& bound : context.bound_ports)
      if (bound.type == type && bound.port == port) sharers.push_back(bound.fd);
    const int on = 1, off = 0;
    for (const int sharer : sharers) {
      if (sharers.size() < 2 || socket_option(sharer, SOL_SOCKET, SO_REUSEPORT) != 0) continue;
      ::setsockopt(sharer, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
      context.later([sharer, off] { ::setsockopt(sharer, SOL_SOCKET, SO_REUSEPORT, &off, sizeof off); });
    }
    done = sharers.size() > 1 && bind_it();
    if (!done) errno = EADDRINUSE;
  }
  if (done) context.bound_ports.push_back({type, port, fd});
  return done;
}

bool bind_with_patience(RestoreContext& context, int fd, const InetAddress& address, int domain,
                        const std::function<void()>& retry) {
  constexpr auto kPause = std::chrono::milliseconds(50);
  sockaddr_storage name;
  const socklen_t length = address.to_sockaddr(domain, name);
  while (!bind_shared(context, fd, name, length, address.port)) {
    if (errno != EADDRINUSE || context.patience.count() <= 0) return false;
    if (retry) retry();
    std::this_thread::sleep_for(kPause);
    context.patience -= kPause;
    errno = EADDRINUSE;
  }
  return true;
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
