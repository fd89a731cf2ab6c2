// SPDX-License-Identifier: GPL-2.0-or-later
// UDP sockets, IPv4 and IPv6: options, address, peer. Datagrams on their way are lost, as they may be at any time.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& udp_socket_kind();

}  // namespace icp
