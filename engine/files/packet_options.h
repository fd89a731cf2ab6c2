// SPDX-License-Identifier: GPL-2.0-or-later
// Options of connections that packets change, or that say what packets are like: the packets of a restart, by which two
// ends find each other, are to leave them as they were.
#pragma once

#include "engine/files/inet_address.h"
#include "engine/files/socket_option.h"

namespace icp {

// Of a TCP socket with all its options, before it meets its other end. A TCP socket over IPv6 that asks for it notes
// hop limit and interface of what arrives, and an accepted one those of the first packet, where multicast has them.
void prepare_for_packets(const SocketOptions& options, int domain, int fd);
// When the last packet has come.
void restore_after_packets(const SocketOptions& options, int domain, int fd);

// Where to bind a socket that is to be connected: a program that did not bind it to an address itself has
// IPV6_V6ONLY off, which a bind to one would switch on for good. The same address comes with the connection then.
InetAddress address_to_bind(const InetAddress& local, const InetAddress& remote, int domain, int fd);

}  // namespace icp
