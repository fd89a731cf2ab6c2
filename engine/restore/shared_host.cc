// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/restore/shared_host.h"

#include <netinet/in.h>

#include <cstring>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "engine/base/error.h"
#include "engine/files/inet_address.h"

namespace icp {
namespace {

constexpr const char* kHint = "restart the step on as many nodes as it had";

// A port that a socket keeps for itself.
struct Port {
  bool udp = false;
  uint16_t number = 0;
  std::string ip;  // empty: all addresses; an address of the host counts as any other one of it
  bool v6 = false, v6_only = false;
};

bool flag(const google::protobuf::RepeatedPtrField<pb::SocketOption>& options, uint32_t level, uint32_t name) {
  int value = 0;
  for (const pb::SocketOption& option : options) {
    if (option.level() == level && option.name() == name && option.value().size() == sizeof value)
      std::memcpy(&value, option.value().data(), sizeof value);
  }
  return value != 0;
}

// Hosts' own addresses become the common host's; loopback ones stay.
std::string class_of(const InetAddress& address) {
  if (address.any()) return {};
  return address.loopback() ? address.ip : "host";
}

template <typename Socket>
Port port_of(const Socket& socket, bool udp) {
  const InetAddress local = InetAddress::of(socket.local());
  return {udp, local.port, class_of(local), socket.v6(), flag(socket.options(), IPPROTO_IPV6, IPV6_V6ONLY)};
}

std::vector<Port> ports_of(const pb::Capsule& capsule) {
  std::vector<Port> ports;
  for (const pb::OpenFile& file : capsule.files()) {
    const auto state = file.tcp().state();
    const bool own = state == pb::TcpSocket::LISTENING || state == pb::TcpSocket::UNCONNECTED;
    if (file.has_tcp() && own) ports.push_back(port_of(file.tcp(), false));
    if (file.has_udp()) ports.push_back(port_of(file.udp(), true));
  }
  std::erase_if(ports, [](const Port& port) { return port.number == 0; });
  return ports;
}

bool meet(const Port& one, const Port& other) {
  if (one.udp != other.udp || one.number != other.number) return false;
  if (one.v6 != other.v6) {
    const Port& six = one.v6 ? one : other;
    if (six.v6_only || !six.ip.empty()) return false;
  }
  return one.ip.empty() || other.ip.empty() || one.ip == other.ip;
}

[[noreturn]] void refuse(const CapsuleOnHost& one, const CapsuleOnHost& other, const std::string& what) {
  throw Error(ErrorKind::kRefused,
              fmt::format("the processes of {} and {} cannot share a node: {}", one.name, other.name, what), 0, kHint);
}

void check_ports(const CapsuleOnHost& one, const CapsuleOnHost& other) {
  std::multimap<uint16_t, Port> ports;
  for (const Port& port : ports_of(*one.capsule)) ports.emplace(port.number, port);
  for (const Port& port : ports_of(*other.capsule)) {
    const auto [begin, end] = ports.equal_range(port.number);
    for (auto at = begin; at != end; ++at) {
      if (meet(at->second, port))
        refuse(one, other, fmt::format("both have {} port {}", port.udp ? "UDP" : "TCP", port.number));
    }
  }
}

// What a connection will be called on the common host.
using Connection = std::tuple<std::string, uint16_t, std::string, uint16_t>;

std::set<std::string> hosts_addresses(const std::vector<CapsuleOnHost>& capsules) {
  std::set<std::string> all;
  for (const CapsuleOnHost& entry : capsules) {
    for (const pb::OpenFile& file : entry.capsule->files()) {
      const InetAddress local = InetAddress::of(file.tcp().local());
      if (file.has_tcp() && !local.loopback() && !local.any()) all.insert(local.ip);
    }
  }
  return all;
}

void check_connections(const std::vector<CapsuleOnHost>& capsules) {
  const std::set<std::string> here = hosts_addresses(capsules);
  std::map<Connection, const CapsuleOnHost*> seen;
  for (const CapsuleOnHost& entry : capsules) {
    for (const pb::OpenFile& file : entry.capsule->files()) {
      if (file.tcp().state() != pb::TcpSocket::CONNECTED || !file.has_tcp()) continue;
      const InetAddress local = InetAddress::of(file.tcp().local()), remote = InetAddress::of(file.tcp().remote());
      const std::string far = here.contains(remote.ip) ? class_of(remote) : remote.ip;
      const auto [at, fresh] = seen.try_emplace({class_of(local), local.port, far, remote.port}, &entry);
      if (fresh || at->second == &entry) continue;
      refuse(*at->second, entry,
             fmt::format("the TCP connection {} to {} would be there twice", local.text(), remote.text()));
    }
  }
}

std::set<std::string> names_of(const pb::Capsule& capsule) {
  std::set<std::string> names;
  for (const pb::OpenFile& file : capsule.files())
    if (!file.unix_socket().name().empty()) names.insert(file.unix_socket().name());
  return names;
}

std::set<std::string> shm_files(const pb::Capsule& capsule) {
  std::set<std::string> paths;
  for (const pb::MemoryObject& object : capsule.objects())
    if (object.kind() == pb::MemoryObject::SHM_FILE) paths.insert(object.path());
  return paths;
}

void check_names(const CapsuleOnHost& one, const CapsuleOnHost& other) {
  const std::set<std::string> names = names_of(*one.capsule), files = shm_files(*one.capsule);
  for (std::string name : names_of(*other.capsule)) {
    if (!names.contains(name)) continue;
    if (name[0] == '\0') name[0] = '@';
    refuse(one, other, fmt::format("both have a Unix socket {}", name));
  }
  for (const std::string& file : shm_files(*other.capsule))
    if (files.contains(file)) refuse(one, other, fmt::format("both have a file {}", file));
}

}  // namespace

void check_shared_host(const std::vector<CapsuleOnHost>& capsules) {
  for (size_t i = 0; i < capsules.size(); i++) {
    for (size_t j = 0; j < i; j++) {
      if (capsules[i].host == capsules[j].host) continue;
      check_ports(capsules[j], capsules[i]);
      check_names(capsules[j], capsules[i]);
    }
  }
  check_connections(capsules);
}

}  // namespace icp
