// SPDX-License-Identifier: GPL-2.0-or-later
// TCP sockets, IPv4 and IPv6: unconnected, bound, listening, and connections between processes of the job, with the
// data in flight. A connection is rebuilt in the kernel's TCP repair mode, with no packet on the wire, and let go when
// its other end is there, too.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& tcp_socket_kind();

// Makes all TCP sockets of an image: see tcp_socket_restore.cc.
void create_tcp_sockets(RestoreContext& context, ImageFiles files);

// Throws when an end of a connection to another capsule has no other end there (RestoreContext::other_ends).
void check_connections(const RestoreContext& context);

}  // namespace icp
