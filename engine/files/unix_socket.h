// SPDX-License-Identifier: GPL-2.0-or-later
// AF_UNIX sockets: connected pairs with the data in flight (descriptors and credentials included), listeners with who
// waits to be accepted, unconnected ones, and datagram sockets connected to a name (syslog). Of who is at the other end
// (SO_PEERCRED) the user comes back, not the process.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& unix_socket_kind();

// Makes all Unix sockets of an image. unix_socket_restore.cc.
void create_unix_sockets(RestoreContext& context, ImageFiles files);

}  // namespace icp
