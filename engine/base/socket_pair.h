// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <sys/socket.h>

#include "engine/base/error.h"
#include "engine/base/unique_fd.h"

namespace icp {

// Two connected Unix sockets that an exec closes: one to keep, one for another process. Throws Error.
struct SocketPair {
  UniqueFd here, there;
  explicit SocketPair(int type) {
    int ends[2];
    if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends) != 0) throw_errno("cannot make a socket pair");
    here.reset(ends[0]);
    there.reset(ends[1]);
  }
};

}  // namespace icp
