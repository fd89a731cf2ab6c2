// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/own_network.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "engine/base/own_ids.h"
#include "engine/base/unique_fd.h"

namespace icp {
namespace {

bool entered = false;

bool write_file(const char* path, const std::string& text) {
  const UniqueFd fd(::open(path, O_WRONLY | O_CLOEXEC));
  return fd && ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

bool start_loopback() {
  const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strcpy(request.ifr_name, "lo");
  if (!socket || ::ioctl(socket.get(), SIOCGIFFLAGS, &request) != 0) return false;
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
  return ::ioctl(socket.get(), SIOCSIFFLAGS, &request) == 0;
}

// As `ip route add local default dev lo`: whatever address a packet is for, it is for this host.
void make_all_local(unsigned char family) {
  struct {
    nlmsghdr header;
    rtmsg route;
    rtattr attribute;
    uint32_t interface;
  } request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = RTM_NEWROUTE;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK;
  request.route.rtm_family = family;
  request.route.rtm_table = RT_TABLE_LOCAL;
  request.route.rtm_protocol = RTPROT_STATIC;
  request.route.rtm_scope = RT_SCOPE_HOST;
  request.route.rtm_type = RTN_LOCAL;
  request.attribute = {RTA_LENGTH(sizeof request.interface), RTA_OIF};
  request.interface = ::if_nametoindex("lo");
  const UniqueFd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  char answer[1024];
  // A kernel without IPv6 has no use for it.
  if (socket && ::send(socket.get(), &request, sizeof request, 0) > 0)
    (void)!::recv(socket.get(), answer, sizeof answer, 0);
}

}  // namespace

bool enter_own_network() {
  if (entered) return true;
  const uid_t uid = ::geteuid();
  const gid_t gid = ::getegid();
  if (::unshare(uid == 0 ? CLONE_NEWNET : CLONE_NEWUSER | CLONE_NEWNET) != 0) return false;
  if (uid != 0 && map_own_ids("self", uid, gid) != nullptr) return false;
  if (!start_loopback()) return false;
  make_all_local(AF_INET);
  make_all_local(AF_INET6);
  write_file("/proc/sys/net/ipv4/ip_nonlocal_bind", "1");
  write_file("/proc/sys/net/ipv6/ip_nonlocal_bind", "1");
  entered = true;
  return true;
}

bool in_own_network() { return entered; }

}  // namespace icp
