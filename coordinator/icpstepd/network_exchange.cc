// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/network_exchange.h"

#include <arpa/inet.h>

#include <set>
#include <utility>

#include "engine/files/inet_address.h"

namespace icp {
namespace {

std::string ip_text(const std::string& ip) {
  char text[INET6_ADDRSTRLEN] = "";
  if (ip.size() != 4 && ip.size() != 16) return {};
  ::inet_ntop(ip.size() == 4 ? AF_INET : AF_INET6, ip.data(), text, sizeof text);
  return text;
}

bool valid(const net::ConnectionEnd& end) {
  const auto is_ip = [](const std::string& ip) { return ip.size() == 4 || ip.size() == 16; };
  return is_ip(end.local_ip()) && is_ip(end.remote_ip()) && end.local_port() <= 65535 && end.remote_port() <= 65535;
}

}  // namespace

google::protobuf::RepeatedPtrField<net::ConnectionEnd> to_message(const std::vector<ConnectionEnd>& ends) {
  google::protobuf::RepeatedPtrField<net::ConnectionEnd> list;
  for (const ConnectionEnd& end : ends) {
    net::ConnectionEnd& out = *list.Add();
    out.set_local_ip(end.local.ip);
    out.set_local_port(end.local.port);
    out.set_local_scope(end.local.scope);
    out.set_remote_ip(end.remote.ip);
    out.set_remote_port(end.remote.port);
    out.set_remote_scope(end.remote.scope);
    out.set_received(end.received);
  }
  return list;
}

std::vector<ConnectionEnd> from_message(const google::protobuf::RepeatedPtrField<net::ConnectionEnd>& ends) {
  std::vector<ConnectionEnd> list;
  for (const net::ConnectionEnd& end : ends) {
    if (!valid(end)) continue;
    list.push_back({{end.local_ip(), static_cast<uint16_t>(end.local_port()), end.local_scope()},
                    {end.remote_ip(), static_cast<uint16_t>(end.remote_port()), end.remote_scope()},
                    end.received()});
  }
  return list;
}

std::vector<ConnectionEnd> inside(const std::vector<ConnectionEnd>& mine, const std::vector<ConnectionEnd>& others) {
  std::set<std::pair<InetAddress, InetAddress>> there;
  for (const ConnectionEnd& end : others) there.insert({end.remote, end.local});
  std::vector<ConnectionEnd> found;
  for (const ConnectionEnd& end : mine) {
    if (there.contains({end.local, end.remote})) found.push_back(end);
  }
  return found;
}

google::protobuf::RepeatedPtrField<net::NewAddress> moved_addresses(const pb::Capsule& capsule) {
  google::protobuf::RepeatedPtrField<net::NewAddress> list;
  const AddressMap here;
  std::set<std::string> seen;
  for (const pb::OpenFile& file : capsule.files()) {
    if (!file.has_tcp() || file.tcp().remote().ip().empty()) continue;
    const InetAddress old = InetAddress::of(file.tcp().local());
    if (!old.valid() || old.loopback() || !seen.insert(old.ip).second) continue;
    const InetAddress now = here.local(old);
    if (now.ip == old.ip) continue;
    net::NewAddress& moved = *list.Add();
    moved.set_old_ip(old.ip);
    moved.set_new_ip(now.ip);
  }
  return list;
}

std::vector<std::pair<std::string, std::string>> address_texts(
    const google::protobuf::RepeatedPtrField<net::NewAddress>& addresses) {
  std::vector<std::pair<std::string, std::string>> list;
  for (const net::NewAddress& address : addresses) {
    const std::string old_ip = ip_text(address.old_ip()), new_ip = ip_text(address.new_ip());
    if (!old_ip.empty() && !new_ip.empty()) list.emplace_back(old_ip, new_ip);
  }
  return list;
}

}  // namespace icp
