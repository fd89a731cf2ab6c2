// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/inet_address.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <netinet/in.h>

#include <cstring>

namespace icp {
namespace {

constexpr size_t kV4 = 4, kV6 = 16;
constexpr char kMapped[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '\xff', '\xff'};

std::string bytes_of(const void* data, size_t size) { return {static_cast<const char*>(data), size}; }

std::string loopback_of(size_t size) {
  if (size == kV4) return {127, 0, 0, 1};
  return bytes_of(&in6addr_loopback, kV6);
}

// Of what getifaddrs(3) gives; nothing for another family.
std::optional<std::string> ip_of(const sockaddr* given) {
  if (given == nullptr || (given->sa_family != AF_INET && given->sa_family != AF_INET6)) return {};
  sockaddr_storage address{};
  std::memcpy(&address, given, given->sa_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
  return InetAddress::of(address).ip;
}

bool same_subnet(const std::string& one, const std::string& other, const std::string& mask) {
  if (mask.size() != one.size() || other.size() != one.size()) return false;
  for (size_t i = 0; i < mask.size(); i++)
    if (((one[i] ^ other[i]) & mask[i]) != 0) return false;
  return true;
}

bool link_local(const std::string& ip) {
  return ip.size() == kV6 && ip[0] == '\xfe' && (static_cast<unsigned char>(ip[1]) & 0xc0) == 0x80;
}

}  // namespace

bool InetAddress::loopback() const { return (ip.size() == kV4 && ip[0] == 127) || ip == loopback_of(kV6); }

std::string InetAddress::text() const {
  char buffer[INET6_ADDRSTRLEN] = "?";
  if (ip.size() == kV4) {
    ::inet_ntop(AF_INET, ip.data(), buffer, sizeof buffer);
    return fmt::format("{}:{}", buffer, port);
  }
  if (ip.size() == kV6) ::inet_ntop(AF_INET6, ip.data(), buffer, sizeof buffer);
  return scope == 0 ? fmt::format("[{}]:{}", buffer, port) : fmt::format("[{}%{}]:{}", buffer, scope, port);
}

InetAddress InetAddress::of(const sockaddr_storage& address) {
  InetAddress result;
  if (address.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(address);
    result.ip = bytes_of(&in.sin_addr, kV4);
    result.port = ntohs(in.sin_port);
  } else if (address.ss_family == AF_INET6) {
    const auto& in = reinterpret_cast<const sockaddr_in6&>(address);
    result.ip = bytes_of(&in.sin6_addr, kV6);
    if (IN6_IS_ADDR_V4MAPPED(&in.sin6_addr)) result.ip.erase(0, sizeof kMapped);
    result.port = ntohs(in.sin6_port);
    result.scope = in.sin6_scope_id;
  }
  return result;
}

InetAddress InetAddress::local_of(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return {};
  return of(address);
}

std::optional<InetAddress> InetAddress::peer_of(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return {};
  return of(address);
}

InetAddress InetAddress::of(const pb::InetAddress& image) {
  return {image.ip(), static_cast<uint16_t>(image.port()), image.scope()};
}

std::optional<InetAddress> InetAddress::parse(const std::string& text) {
  in6_addr six{};
  in_addr four{};
  if (::inet_pton(AF_INET, text.c_str(), &four) == 1) return InetAddress{bytes_of(&four, kV4)};
  if (::inet_pton(AF_INET6, text.c_str(), &six) == 1) return InetAddress{bytes_of(&six, kV6)};
  return {};
}

void InetAddress::store(pb::InetAddress& image) const {
  image.set_ip(ip);
  image.set_port(port);
  image.set_scope(scope);
}

socklen_t InetAddress::to_sockaddr(int domain, sockaddr_storage& address) const {
  address = {};
  if (domain == AF_INET && ip.size() == kV4) {
    auto& in = reinterpret_cast<sockaddr_in&>(address);
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    std::memcpy(&in.sin_addr, ip.data(), kV4);
    return sizeof in;
  }
  if (domain == AF_INET6 && valid()) {
    auto& in = reinterpret_cast<sockaddr_in6&>(address);
    in.sin6_family = AF_INET6;
    in.sin6_port = htons(port);
    in.sin6_scope_id = scope;
    const std::string whole = ip.size() == kV4 ? bytes_of(kMapped, sizeof kMapped) + ip : ip;
    std::memcpy(&in.sin6_addr, whole.data(), kV6);
    return sizeof in;
  }
  return 0;
}

AddressMap::AddressMap() {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return;  // then only loopback counts as this host's
  for (const ifaddrs* one = all; one; one = one->ifa_next) {
    const auto ip = ip_of(one->ifa_addr);
    if (!ip) continue;
    const InetAddress own{*ip};
    own_[own.ip] = {!own.loopback() && !link_local(own.ip), ip_of(one->ifa_netmask).value_or("")};
  }
  ::freeifaddrs(all);
}

bool AddressMap::is_local(const InetAddress& address) const {
  return address.loopback() || own_.count(address.ip) != 0;
}

InetAddress AddressMap::remote(const InetAddress& address) const {
  InetAddress result = address;
  if (const auto set = map_.find(address.ip); set != map_.end()) result.ip = set->second;
  return result;
}

InetAddress AddressMap::instead(const InetAddress& address) const {
  const std::string* found = nullptr;
  for (const auto& [ip, own] : own_) {
    if (!own.global || ip.size() != address.ip.size()) continue;
    const bool near = same_subnet(ip, address.ip, own.mask);
    if (near || found == nullptr) found = &ip;
    if (near) break;
  }
  return {found != nullptr ? *found : loopback_of(address.ip.size()), address.port};
}

InetAddress AddressMap::local(const InetAddress& address) const {
  const InetAddress result = remote(address);
  return result.any() || is_local(result) ? result : instead(address);
}

InetAddress AddressMap::reachable(const InetAddress& address) const {
  return !address.loopback() && own_.contains(address.ip) ? address : instead(address);
}

}  // namespace icp
