// SPDX-License-Identifier: GPL-2.0-or-later
// Reading a TCP connection of a stopped process: its sequence numbers and what it has not delivered.
//
// The kernel tells these only in TCP's repair mode, in which the connection is of no use to its process. Here the mode
// is entered and left again within one system call (a batch of io_uring), so that no end of the agent, SIGKILL
// included, leaves a connection in it. Where io_uring is switched off, it is done call by call.
#pragma once

#include <cstdint>
#include <string>

namespace icp {

class TcpReader {
 public:
  // What the process has written and the other end has not acknowledged, up to now. `next` is TCP's number after its
  // last byte, a FIN counted.
  struct Outgoing {
    std::string data;
    uint32_t next = 0;
  };
  Outgoing outgoing(int fd);

  // What waits to be read; it stays there. `next` is the number of the first byte that has not come yet, a FIN counted.
  struct Incoming {
    std::string data;
    uint32_t next = 0;
    uint8_t state = 0;  // TcpState at that moment
  };
  Incoming incoming(int fd);

  // False: call by call.
  static bool atomic();
};

// How much data waits to be read.
size_t bytes_waiting(int fd);
// Data waiting to be read, of whatever state; `most` bytes of it.
std::string peek_stream(int fd, size_t bytes);

}  // namespace icp
