// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/udp_socket.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include "engine/base/error.h"
#include "engine/base/own_network.h"
#include "engine/files/packet_options.h"
#include "engine/files/socket_option.h"

namespace icp {
namespace {

void check_address(const pb::OpenFile& file, const pb::InetAddress& address) {
  const bool fits = address.ip().size() == 4 || (address.ip().size() == 16 && file.udp().v6());
  if (!fits || address.port() > UINT16_MAX) throw_bad_file(file, "a UDP socket has no usable address");
}

class UdpSocketKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kUdp; }

  bool recognises(FileScan& scan, Description& description) const override {
    if (!S_ISSOCK(description.stat.st_mode)) return false;
    const int fd = scan.take(description);
    if (fd < 0 || socket_option(fd, SOL_SOCKET, SO_PROTOCOL) != IPPROTO_UDP) return false;
    const int domain = socket_option(fd, SOL_SOCKET, SO_DOMAIN);
    return (domain == AF_INET || domain == AF_INET6) && socket_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM;
  }

  void check_one(FileScan& scan, Description& description) const override {
    const int fd = scan.take(description);
    check_socket_options(scan, description);
    const uint64_t space = fd >= 0 ? network_namespace_of(fd) : 0;
    if (space == 0 || space == own_network_namespace()) return;
    scan.refuse(description,
                fmt::format("UDP socket {} of another network namespace", InetAddress::local_of(fd).text()),
                "close it before a checkpoint");
  }

  void capture_one(FileScan& scan, const ObjectResolver&, Description& description) const override {
    const int fd = scan.take(description);
    pb::UdpSocket& message = *description.message->mutable_udp();
    message.set_v6(socket_option(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET6);
    InetAddress::local_of(fd).store(*message.mutable_local());
    if (const auto remote = InetAddress::peer_of(fd)) remote->store(*message.mutable_remote());
    capture_socket_options(fd, message.has_remote(), *message.mutable_options());
    capture_socket_buffers(fd, *message.mutable_buffers());
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    const pb::UdpSocket& socket = file.udp();
    check_address(file, socket.local());
    if (socket.has_remote()) check_address(file, socket.remote());
    const int domain = socket.v6() ? AF_INET6 : AF_INET;
    UniqueFd fd = make_inet_socket(context, domain, SOCK_DGRAM);
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
    check_port(context, file, local.port);
    if (local.port != 0 && !bind_with_patience(context, fd.get(), local, domain)) {
      throw_errno("cannot bind a UDP socket to {}", local.text());
    }
    if (!socket.has_remote()) return fd;
    const socklen_t length = remote.to_sockaddr(domain, name);
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), length) != 0) {
      throw_errno("cannot connect a UDP socket to {}", remote.text());
    }
    return fd;
  }
};

}  // namespace

const FileKind& udp_socket_kind() {
  static const UdpSocketKind kind;
  return kind;
}

}  // namespace icp
