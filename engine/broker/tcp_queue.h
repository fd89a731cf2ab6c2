// SPDX-License-Identifier: GPL-2.0-or-later
// A look at the queues of a TCP connection in repair mode, which needs CAP_NET_ADMIN.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace icp {

// Beside TCP_REPAIR_*: nothing that comes is taken in, nor answered. SO_DETACH_FILTER ends it. Some kernels let only
// root attach a filter.
constexpr int kTcpDeaf = 100;

// One thread.
class TcpQueuePeek {
 public:
  TcpQueuePeek();
  ~TcpQueuePeek();
  TcpQueuePeek(const TcpQueuePeek&) = delete;
  TcpQueuePeek& operator=(const TcpQueuePeek&) = delete;

  // Enters repair mode, makes getsockopt(TCP_QUEUE_SEQ) tell of `queue` (1 receive, 2 send), copies up to `most` bytes
  // of it, and leaves repair mode.
  std::string peek(int fd, int queue, size_t most);
  // All of that is one system call, from which no SIGKILL takes the process (io_uring, Linux 6.7); false: call by call.
  bool atomic() const;

 private:
  struct Ring;
  std::unique_ptr<Ring> ring_;
};

}  // namespace icp
