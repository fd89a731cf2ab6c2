// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

namespace icp::pmix {

// Whether the other end of a TCP connection over IPv4 within this host is a socket of this process's user, which the
// kernel tells (sock_diag(7)).
bool is_own_peer(int fd);

}  // namespace icp::pmix
