// SPDX-License-Identifier: GPL-2.0-or-later
// For processes under test: options of their sockets that are one number.
#pragma once

#include <sys/socket.h>

#include "tests/engine/roundtrip.h"

namespace icp::test {

inline int get_option(int fd, int level, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  CHECK_OR_DIE(::getsockopt(fd, level, name, &value, &length) == 0);
  return value;
}

inline void set_option(int fd, int level, int name, int value) {
  CHECK_OR_DIE(::setsockopt(fd, level, name, &value, sizeof value) == 0);
}

}  // namespace icp::test
