// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/network_exchange.h"

#include <arpa/inet.h>

#include <fstream>
#include <set>
#include <utility>

#include "engine/base/error.h"
#include "engine/files/socket_option.h"

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

google::protobuf::RepeatedPtrField<net::ConnectionEnd> single(const net::ConnectionEnd& end) {
  google::protobuf::RepeatedPtrField<net::ConnectionEnd> list;
  *list.Add() = end;
  return list;
}

std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  std::getline(file, text);
  return text;
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
    const google::protobuf::RepeatedPtrField<net::NewAddress>& all,
    const google::protobuf::RepeatedPtrField<net::NewAddress>& mine, const pb::Capsule& capsule) {
  std::map<std::string, std::string> texts;
  const auto add = [&texts](const net::NewAddress& address) {
    const std::string old_ip = ip_text(address.old_ip()), new_ip = ip_text(address.new_ip());
    const bool fits = address.old_ip().size() == address.new_ip().size();
    if (fits && !old_ip.empty() && !new_ip.empty()) texts.emplace(old_ip, new_ip);
  };
  std::set<std::string> own;
  for (const pb::OpenFile& file : capsule.files())
    if (file.has_tcp()) own.insert(file.tcp().local().ip());
  for (const net::NewAddress& address : mine) add(address);
  for (const net::NewAddress& address : all)
    if (!own.contains(address.old_ip())) add(address);
  return {texts.begin(), texts.end()};
}

google::protobuf::RepeatedPtrField<net::ConnectionEnd> ends_to_restore(const pb::Capsule& capsule) {
  std::set<Ends> all;
  for (const pb::OpenFile& file : capsule.files()) {
    if (!file.has_tcp() || file.tcp().state() != pb::TcpSocket::CONNECTED) continue;
    const InetAddress local = InetAddress::of(file.tcp().local()), remote = InetAddress::of(file.tcp().remote());
    if (local.valid() && remote.valid()) all.emplace(local, remote);
  }
  const AddressMap here;
  // The same number is another namespace's on another host, or after a reboot.
  const std::string network = fmt::format("{}/{}", boot_id(), own_network_namespace());
  std::vector<ConnectionEnd> ends;
  for (const auto& [local, remote] : all)
    if (!all.contains({remote, local})) ends.push_back({local, remote});
  auto list = to_message(ends);
  for (int i = 0; i < list.size(); i++) {
    list[i].set_new_local_ip(here.reachable(ends[static_cast<size_t>(i)].local).ip);
    list[i].set_network(network);
  }
  return list;
}

std::map<Ends, Ends> new_connections(const google::protobuf::RepeatedPtrField<net::ConnectionEnd>& mine,
                                     const google::protobuf::RepeatedPtrField<net::ConnectionEnd>& others) {
  struct Other {
    std::string ip, network;
  };
  std::map<Ends, Other> by_ends;
  for (const net::ConnectionEnd& end : others) {
    const auto parsed = from_message(single(end));
    const bool usable = end.new_local_ip().size() == end.local_ip().size();
    if (!parsed.empty() && usable) by_ends[{parsed[0].remote, parsed[0].local}] = {end.new_local_ip(), end.network()};
  }
  std::map<Ends, Ends> result;
  for (const net::ConnectionEnd& end : mine) {
    const ConnectionEnd own = from_message(single(end)).at(0);
    const auto other = by_ends.find({own.local, own.remote});
    if (other == by_ends.end()) continue;  // whether it is there at all is looked at when all capsules are built
    const InetAddress local{end.new_local_ip(), own.local.port}, remote{other->second.ip, own.remote.port};
    if (other->second.network != end.network() && (local.loopback() || remote.loopback())) {
      throw Error(ErrorKind::kRefused,
                  fmt::format("the TCP connection {} to {} cannot be rebuilt between two hosts of which one has no "
                              "address but loopback",
                              own.local.text(), own.remote.text()),
                  0, "restore the step on one node");
    }
    const bool unchanged = other->second.network == end.network() && own.local.loopback() && own.remote.loopback();
    result[{own.local, own.remote}] = unchanged ? Ends{own.local, own.remote} : Ends{local, remote};
  }
  return result;
}

}  // namespace icp
