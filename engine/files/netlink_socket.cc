// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/netlink_socket.h"

#include <linux/netlink.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <array>

#include "engine/base/error.h"
#include "engine/files/socket_option.h"

namespace icp {
namespace {

constexpr uint32_t kMostGroup = 1u << 16;

bool has_messages(int fd) {
  char byte = 0;
  return ::recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0;
}

sockaddr_nl address_of(int fd, int (*ask)(int, sockaddr*, socklen_t*)) {
  sockaddr_nl address{};
  socklen_t length = sizeof address;
  if (ask(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return {};
  return address;
}

void capture_groups(int fd, pb::NetlinkSocket& message) {
  std::array<uint32_t, kMostGroup / 32> words{};
  socklen_t length = sizeof words;
  if (::getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words.data(), &length) != 0) return;
  for (uint32_t i = 0; i < std::min<size_t>(length, sizeof words) * 8; ++i)
    if (words[i / 32] >> (i % 32) & 1) message.add_groups(i + 1);
}

class NetlinkSocketKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kNetlink; }

  bool recognises(FileScan& scan, Description& description) const override {
    if (!S_ISSOCK(description.stat.st_mode)) return false;
    const int fd = scan.take(description);
    return fd >= 0 && socket_option(fd, SOL_SOCKET, SO_DOMAIN) == AF_NETLINK;
  }

  void check_one(FileScan& scan, Description& description) const override {
    check_socket_options(scan, description);
    const int fd = scan.take(description);
    if (fd < 0) return;
    const int protocol = socket_option(fd, SOL_SOCKET, SO_PROTOCOL);
    const uint64_t space = network_namespace_of(fd);
    if (space != 0 && space != own_network_namespace()) {
      scan.refuse(description, fmt::format("netlink socket of protocol {} of another network namespace", protocol),
                  "close it before a checkpoint");
    } else if (has_messages(fd)) {
      scan.refuse(description, fmt::format("netlink socket of protocol {} with messages in it", protocol),
                  "try again in a moment", true);
    }
  }

  void capture_one(FileScan& scan, const ObjectResolver&, Description& description) const override {
    const int fd = scan.take(description);
    pb::NetlinkSocket& message = *description.message->mutable_netlink();
    message.set_type(socket_option(fd, SOL_SOCKET, SO_TYPE));
    message.set_protocol(static_cast<uint32_t>(socket_option(fd, SOL_SOCKET, SO_PROTOCOL)));
    message.set_port(address_of(fd, ::getsockname).nl_pid);
    const sockaddr_nl peer = address_of(fd, ::getpeername);
    message.set_peer_port(peer.nl_pid);
    message.set_peer_groups(peer.nl_groups);
    capture_groups(fd, message);
    capture_socket_options(fd, true, *message.mutable_options());
    capture_socket_buffers(fd, *message.mutable_buffers());
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    const pb::NetlinkSocket& image = file.netlink();
    if ((image.type() != SOCK_RAW && image.type() != SOCK_DGRAM) || image.protocol() >= MAX_LINKS)
      throw_bad_file(file, "there are no such netlink sockets");
    UniqueFd fd;
    {
      const FsIdentity as_user(context.options.identity);
      fd.reset(::socket(AF_NETLINK, image.type() | SOCK_CLOEXEC, static_cast<int>(image.protocol())));
    }
    if (!fd) throw_errno("cannot make a netlink socket of protocol {}", image.protocol());
    restore_socket_options(file, image.options(), fd.get());
    restore_socket_buffers(image.buffers(), fd.get());
    bind_again(context, image, fd.get());
    for (const uint32_t group : image.groups()) {
      const bool done = group > 0 && group <= kMostGroup &&
                        ::setsockopt(fd.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) == 0;
      if (!done) throw_bad_file(file, fmt::format("it cannot join group {} of netlink again", group));
    }
    sockaddr_nl peer{};
    peer.nl_family = AF_NETLINK;
    peer.nl_pid = image.peer_port();
    peer.nl_groups = image.peer_groups();
    if ((peer.nl_pid != 0 || peer.nl_groups != 0) &&
        ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&peer), sizeof peer) != 0)
      throw_errno("cannot connect a netlink socket");
    return fd;
  }

 private:
  // The kernel gives a process's number as its first port, which somebody else may have by now, or the running job.
  static void bind_again(const RestoreContext& context, const pb::NetlinkSocket& image, int fd) {
    if (image.port() == 0) return;
    sockaddr_nl name{};
    name.nl_family = AF_NETLINK;
    name.nl_pid = context.options.dry ? 0 : image.port();
    if (::bind(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0) return;
    if (errno != EADDRINUSE) throw_errno("cannot bind a netlink socket to port {}", image.port());
    spdlog::warn("port {} of a netlink socket is another program's now: it has another one", image.port());
    name.nl_pid = 0;
    if (::bind(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name) != 0)
      throw_errno("cannot bind a netlink socket");
  }
};

}  // namespace

const FileKind& netlink_socket_kind() {
  static const NetlinkSocketKind kind;
  return kind;
}

}  // namespace icp
