// SPDX-License-Identifier: GPL-2.0-or-later
// Internet addresses of sockets, as the kernel and images have them.
#pragma once

#include <sys/socket.h>

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "engine/image/image.pb.h"

namespace icp {

// An IPv4 or IPv6 address with a port. IPv4 addresses mapped into IPv6 (::ffff:a.b.c.d) are IPv4 addresses here, as
// they are for the kernel's TCP.
struct InetAddress {
  std::string ip;      // 4 or 16 bytes, network order; empty: none
  uint16_t port = 0;   // host order
  uint32_t scope = 0;  // interface of a link-local IPv6 address

  auto operator<=>(const InetAddress&) const = default;

  bool any() const { return ip.find_first_not_of('\0') == std::string::npos; }
  bool loopback() const;
  std::string text() const;  // "10.0.0.7:80", "[fe80::1%2]:80"

  static InetAddress of(const sockaddr_storage& address);
  static InetAddress local_of(int fd);                  // getsockname(2); empty on failure
  static std::optional<InetAddress> peer_of(int fd);    // getpeername(2)
  static InetAddress of(const pb::InetAddress& image);  // any bytes: see valid()
  // "10.0.0.7" or "fe80::1"; nothing when the text is no address.
  static std::optional<InetAddress> parse(const std::string& text);
  void store(pb::InetAddress& image) const;
  bool valid() const { return ip.size() == 4 || ip.size() == 16; }

  // For a socket of `domain` (AF_INET, AF_INET6, which wants IPv4 addresses mapped). Length 0: does not fit.
  socklen_t to_sockaddr(int domain, sockaddr_storage& address) const;
};

// Which addresses of the time of the checkpoint are which ones now. Immutable but for set().
class AddressMap {
 public:
  // Reads the addresses of this host's interfaces.
  AddressMap();
  // From now on `old_ip` stands for `new_ip` (bytes).
  void set(const std::string& old_ip, const std::string& new_ip) { map_[old_ip] = new_ip; }
  // The address of an end that lies on this host: as set; else unchanged if it is one of this host's; else this host's
  // global address of the family, one of the same subnet rather than another, or loopback if it has none.
  InetAddress local(const InetAddress& address) const;
  // The same for an end that other hosts must reach: without what was set, and never unchanged loopback.
  InetAddress reachable(const InetAddress& address) const;
  // The address of an end that may lie elsewhere: as set, else unchanged.
  InetAddress remote(const InetAddress& address) const;
  bool is_local(const InetAddress& address) const;

 private:
  struct Own {
    bool global = false;
    std::string mask;  // of its subnet; empty: unknown
  };
  InetAddress instead(const InetAddress& address) const;

  std::map<std::string, std::string> map_;
  std::map<std::string, Own> own_;
};

}  // namespace icp
