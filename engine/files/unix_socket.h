// SPDX-License-Identifier: GPL-2.0-or-later
// AF_UNIX sockets: connected pairs with the data in flight, listeners, unconnected ones, and datagram sockets
// connected to a name (syslog). A pair that was connected by name is restored without its names.
#pragma once

#include <string>
#include <vector>

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& unix_socket_kind();

// Data waiting in a socket, one entry a datagram (or one for a stream's bytes); it stays there. `queued`: bytes
// waiting as SIOCINQ tells, which for a datagram socket is only the first one's. Throws kBusy when
// descriptors are in flight.
// `senders`, if given, gets the name of each one's sender, as in pb::UnixSocket.name.
std::vector<std::string> peek_socket(int fd, int type, uint32_t queued, std::vector<std::string>* senders = nullptr);

// Makes all Unix sockets of an image. unix_socket_restore.cc.
void create_unix_sockets(RestoreContext& context, ImageFiles files);

}  // namespace icp
