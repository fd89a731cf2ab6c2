// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/multicast.h"

#include <net/if.h>
#include <netinet/in.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "engine/base/error.h"
#include "engine/base/printable.h"

namespace icp {
namespace {

constexpr size_t kMostSources = 1024;  // of one group; net.ipv4.igmp_max_msf is 10 by default

int level_of(const std::string& group) { return group.size() == 4 ? IPPROTO_IP : IPPROTO_IPV6; }

sockaddr_storage name_of(const std::string& ip) {
  sockaddr_storage name{};
  InetAddress{ip, 0}.to_sockaddr(ip.size() == 4 ? AF_INET : AF_INET6, name);
  return name;
}

// MCAST_MSFILTER. False: the socket is no member.
bool ask(int fd, uint32_t interface, const std::string& group, pb::MulticastGroup& message) {
  std::vector<std::byte> buffer;
  for (size_t room = 16; room <= kMostSources; room = kMostSources) {
    buffer.assign(GROUP_FILTER_SIZE(room), std::byte{0});
    auto& filter = *reinterpret_cast<group_filter*>(buffer.data());
    filter.gf_interface = interface;
    filter.gf_group = name_of(group);
    filter.gf_numsrc = static_cast<uint32_t>(room);
    auto length = static_cast<socklen_t>(buffer.size());
    if (::getsockopt(fd, level_of(group), MCAST_MSFILTER, &filter, &length) != 0) return false;
    if (filter.gf_numsrc > room && room < kMostSources) continue;
    message.set_group(group);
    message.set_interface(interface);
    message.set_exclude(filter.gf_fmode == MCAST_EXCLUDE);
    for (size_t i = 0; i < std::min<size_t>(filter.gf_numsrc, room); ++i)
      message.add_sources(InetAddress::of(filter.gf_slist[i]).ip);
    return message.exclude() || message.sources_size() > 0;
  }
  return false;
}

int join(int fd, const pb::MulticastGroup& group, uint32_t interface) {
  const int level = level_of(group.group());
  group_req request{};
  request.gr_interface = interface;
  request.gr_group = name_of(group.group());
  if (group.exclude() && ::setsockopt(fd, level, MCAST_JOIN_GROUP, &request, sizeof request) != 0) return errno;
  for (const std::string& source : group.sources()) {
    group_source_req one{};
    one.gsr_interface = interface;
    one.gsr_group = request.gr_group;
    one.gsr_source = name_of(source);
    const int option = group.exclude() ? MCAST_BLOCK_SOURCE : MCAST_JOIN_SOURCE_GROUP;
    if (::setsockopt(fd, level, option, &one, sizeof one) != 0) return errno;
  }
  return 0;
}

}  // namespace

// /proc/net/igmp has a line for an interface ("2  eth0 : 1 V3") and one for each of its groups, whose address is
// printed as the number that it is in memory; /proc/net/igmp6 a line for each group.
MulticastSurvey::MulticastSurvey() {
  std::ifstream v4("/proc/thread-self/net/igmp"), v6("/proc/thread-self/net/igmp6");
  uint32_t interface = 0, address = 0;
  for (std::string line; std::getline(v4, line);) {
    if (line.empty()) continue;
    if (line[0] != '\t') {
      std::sscanf(line.c_str(), "%u", &interface);
    } else if (std::sscanf(line.c_str(), " %8x", &address) == 1) {
      known_.push_back({interface, std::string(reinterpret_cast<const char*>(&address), sizeof address)});
    }
  }
  for (std::string line; std::getline(v6, line);) {
    std::array<char, 33> text{};
    if (std::sscanf(line.c_str(), "%u %*s %32[0-9a-f]", &interface, text.data()) != 2) continue;
    std::string group(16, '\0');
    unsigned byte = 0;
    for (size_t i = 0; i < group.size(); ++i)
      if (std::sscanf(text.data() + 2 * i, "%2x", &byte) == 1) group[i] = static_cast<char>(byte);
    known_.push_back({interface, std::move(group)});
  }
}

void MulticastSurvey::capture(int fd, bool v6, MulticastGroups& groups) const {
  for (const Membership& membership : known_) {
    if (membership.group.size() != 4 && !v6) continue;
    pb::MulticastGroup found;
    if (!ask(fd, membership.interface, membership.group, found)) continue;
    std::array<char, IF_NAMESIZE> name{};
    if (::if_indextoname(membership.interface, name.data()) != nullptr) found.set_interface_name(name.data());
    *groups.Add() = std::move(found);
  }
}

void restore_multicast(const MulticastGroups& groups, int fd, const std::string& name) {
  for (const pb::MulticastGroup& group : groups) {
    if (group.group().size() != 4 && group.group().size() != 16)
      throw_error(ErrorKind::kImage, "{} was in a multicast group without an address", name);
    const uint32_t interface = ::if_nametoindex(group.interface_name().c_str());
    // Without that interface the kernel chooses one.
    const int error = join(fd, group, interface);
    if (error != 0)
      spdlog::warn("{} is no member of multicast group {} at interface {} any more: {}", name,
                   InetAddress{group.group(), 0}.text(), printable(group.interface_name()), errno_text(error));
  }
}

}  // namespace icp
