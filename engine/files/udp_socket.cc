// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/udp_socket.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include "engine/base/error.h"
#include "engine/base/own_network.h"
#include "engine/files/inet_diag.h"
#include "engine/files/multicast.h"
#include "engine/files/packet_options.h"
#include "engine/files/socket_option.h"

namespace icp {
namespace {

bool is_datagram_protocol(int protocol) {
  return protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE || protocol == IPPROTO_ICMP ||
         protocol == IPPROTO_ICMPV6;
}

constexpr int kMostProtocol = 263;  // IPPROTO_MAX of newer kernels

// Whose numbers other programs use, and of which the low ones are root's; the others' are no ports.
bool has_ports(int type, int protocol) {
  return type == SOCK_DGRAM && (protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE);
}

std::string name_of(int fd) {
  const int protocol = socket_option(fd, SOL_SOCKET, SO_PROTOCOL);
  const std::string local = InetAddress::local_of(fd).text();
  if (socket_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_RAW)
    return fmt::format("raw socket {} of IP protocol {}", local, protocol);
  if (protocol == IPPROTO_UDP) return "UDP socket " + local;
  return protocol == IPPROTO_UDPLITE ? "UDP-Lite socket " + local : "ICMP socket " + local;
}

void check_kind(const RestoreContext& context, const pb::OpenFile& file, int type, int protocol) {
  if (type == SOCK_RAW && context.options.identity.uid != 0) throw_bad_file(file, "raw sockets are root's");
  const bool known = type == SOCK_RAW ? protocol >= 0 && protocol < kMostProtocol : is_datagram_protocol(protocol);
  if (!known || (type != SOCK_RAW && type != SOCK_DGRAM))
    throw_bad_file(file, fmt::format("a socket of type {} and IP protocol {}", type, protocol));
}

int domain_of(const pb::UdpSocket& socket) { return socket.v6() ? AF_INET6 : AF_INET; }
int protocol_of(const pb::UdpSocket& socket) { return socket.protocol() != 0 ? socket.protocol() : IPPROTO_UDP; }

// `how` of shutdown(2), or nothing.
void shut(const pb::UdpSocket& socket, int fd) {
  if (socket.shut_read()) ::shutdown(fd, SHUT_RD);  // ENOTCONN of one that is not connected says nothing
  if (socket.shut_write()) ::shutdown(fd, SHUT_WR);
}

void check_address(const pb::OpenFile& file, const pb::InetAddress& address) {
  const bool fits = address.ip().size() == 4 || (address.ip().size() == 16 && file.udp().v6());
  if (!fits || address.port() > UINT16_MAX) throw_bad_file(file, "a UDP socket has no usable address");
}

constexpr int kUdpCork = 1;  // UDP_CORK

class UdpSocketKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kUdp; }

  bool recognises(FileScan& scan, Description& description) const override {
    if (!S_ISSOCK(description.stat.st_mode)) return false;
    const int fd = scan.take(description);
    const int domain = fd < 0 ? 0 : socket_option(fd, SOL_SOCKET, SO_DOMAIN);
    if (domain != AF_INET && domain != AF_INET6) return false;
    const int type = socket_option(fd, SOL_SOCKET, SO_TYPE);
    return type == SOCK_RAW || (type == SOCK_DGRAM && is_datagram_protocol(socket_option(fd, SOL_SOCKET, SO_PROTOCOL)));
  }

  void check_one(FileScan& scan, Description& description) const override {
    const int fd = scan.take(description);
    check_socket_options(scan, description);
    if (fd < 0) return;
    if (socket_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_RAW && ::geteuid() != 0) {
      scan.refuse(description, name_of(fd) + ", which only root can make", "close it before a checkpoint");
      return;
    }
    if (socket_option(fd, IPPROTO_UDP, kUdpCork) != 0)
      scan.refuse(description, name_of(fd) + " with UDP_CORK set, whose datagram may be half made",
                  "clear UDP_CORK once the datagram is sent: versions are taken while it is off", true);
    const uint64_t space = network_namespace_of(fd);
    if (space == 0 || space == own_network_namespace()) return;
    scan.refuse(description, name_of(fd) + " of another network namespace", "close it before a checkpoint");
  }

  void capture(FileScan& scan, const ObjectResolver& objects, Descriptions descriptions) const override {
    SingleFileKind::capture(scan, objects, descriptions);
    DatagramDiag kernel;
    const MulticastSurvey multicast;
    for (Description* description : descriptions) {
      pb::UdpSocket& message = *description->message->mutable_udp();
      const int fd = scan.take(*description);
      multicast.capture(fd, message.v6(), *message.mutable_groups());
      if (message.type() != 0) continue;  // no datagram socket
      const int how = kernel.shutdown_of(fd, domain_of(message), protocol_of(message));
      message.set_shut_read((how & 1) != 0);
      message.set_shut_write((how & 2) != 0);
    }
  }

  void capture_one(FileScan& scan, const ObjectResolver&, Description& description) const override {
    const int fd = scan.take(description);
    pb::UdpSocket& message = *description.message->mutable_udp();
    message.set_v6(socket_option(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET6);
    InetAddress::local_of(fd).store(*message.mutable_local());
    if (const auto remote = InetAddress::peer_of(fd)) remote->store(*message.mutable_remote());
    const int type = socket_option(fd, SOL_SOCKET, SO_TYPE), protocol = socket_option(fd, SOL_SOCKET, SO_PROTOCOL);
    if (type != SOCK_DGRAM) message.set_type(type);
    if (protocol != IPPROTO_UDP) message.set_protocol(protocol);
    capture_socket_options(fd, message.has_remote(), *message.mutable_options());
    capture_socket_buffers(fd, *message.mutable_buffers());
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    const pb::UdpSocket& socket = file.udp();
    check_address(file, socket.local());
    if (socket.has_remote()) check_address(file, socket.remote());
    const int domain = domain_of(socket), protocol = protocol_of(socket);
    const int type = socket.type() != 0 ? socket.type() : SOCK_DGRAM;
    check_kind(context, file, type, protocol);
    UniqueFd fd = make_inet_socket(context, domain, type, protocol);
    restore_socket_options(file, socket.options(), fd.get());
    restore_socket_buffers(socket.buffers(), fd.get());
    if (context.options.dry && !in_own_network()) {
      warn_left_out(file);
      return fd;
    }
    sockaddr_storage name;
    InetAddress local = context.addresses.local(InetAddress::of(socket.local()));
    const InetAddress remote =
        socket.has_remote() ? context.addresses.remote(InetAddress::of(socket.remote())) : InetAddress();
    if (socket.has_remote()) local = address_to_bind(local, remote, domain, fd.get());
    if (has_ports(type, protocol)) check_port(context, file, local.port);
    const bool bound = type == SOCK_RAW ? !local.any() : local.port != 0;
    if (bound && !bind_with_patience(context, fd.get(), local, domain)) {
      throw_errno("cannot bind a {} to {}", has_ports(type, protocol) ? "UDP socket" : "socket", local.text());
    }
    if (!context.options.dry) restore_multicast(socket.groups(), fd.get(), name_of(fd.get()));
    if (!socket.has_remote()) {
      shut(socket, fd.get());
      return fd;
    }
    const socklen_t length = remote.to_sockaddr(domain, name);
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), length) != 0) {
      throw_errno("cannot connect a UDP socket to {}", remote.text());
    }
    shut(socket, fd.get());
    return fd;
  }
};

}  // namespace

const FileKind& udp_socket_kind() {
  static const UdpSocketKind kind;
  return kind;
}

}  // namespace icp
