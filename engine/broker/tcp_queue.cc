// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/broker/tcp_queue.h"

#include <liburing.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/base/error.h"
#include "engine/files/socket_option.h"

namespace icp {
namespace {

constexpr uint32_t kSocketCommandSetsockopt = 3;  // SOCKET_URING_OP_SETSOCKOPT, Linux 6.7
constexpr unsigned kSubmitAll = 1u << 7;          // IORING_SETUP_SUBMIT_ALL, Linux 5.18
constexpr uint64_t kPeek = 1, kFirst = 2, kOther = 3;

// Repair mode gives SO_REUSEADDR a meaning of its own, and leaving it clears the option.
struct Values {
  int on = TCP_REPAIR_ON, off = TCP_REPAIR_OFF_NO_WP, queue = 0, reuse = 0;
};

void call_by_call(int fd, const Values& values, char* buffer, size_t size, ssize_t& peeked) {
  set_socket_option(fd, IPPROTO_TCP, TCP_REPAIR, values.on, "TCP_REPAIR");
  const bool queue_set = ::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &values.queue, sizeof values.queue) == 0;
  if (queue_set && buffer) {
    peeked = ::recv(fd, buffer, size, MSG_PEEK | MSG_DONTWAIT);
    if (peeked < 0) peeked = -errno;
  }
  ::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &values.off, sizeof values.off);
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &values.reuse, sizeof values.reuse);
  if (!queue_set) throw_error(ErrorKind::kSystem, "cannot select a queue of a TCP connection");
}

// The fields of 6.7's header, where that of the build may be older.
void prepare_setsockopt(io_uring_sqe* sqe, int fd, int level, int name, const int& value, uint64_t tag) {
  io_uring_prep_rw(IORING_OP_URING_CMD, sqe, fd, nullptr, 0, kSocketCommandSetsockopt);
  sqe->addr = static_cast<uint32_t>(level) | static_cast<uint64_t>(name) << 32;
  sqe->splice_fd_in = sizeof value;
  sqe->addr3 = reinterpret_cast<uint64_t>(&value);
  sqe->user_data = tag;
}

}  // namespace

struct TcpQueuePeek::Ring {
  io_uring ring{};
  bool usable = false;

  // Processes that are forked from here, which may be checkpointed, do not have it.
  Ring() { usable = ::io_uring_queue_init(8, &ring, kSubmitAll) == 0 && ::io_uring_ring_dontfork(&ring) == 0; }
  ~Ring() {
    if (usable) ::io_uring_queue_exit(&ring);
  }
  // False when the kernel does not know the commands.
  bool run(int fd, const Values& values, char* buffer, size_t size, ssize_t& peeked);
};

// Requests of one submission are carried out one after the other in the system call, without a look at signals. They
// are not linked: a request that fails must not stop the one that leaves repair mode.
bool TcpQueuePeek::Ring::run(int fd, const Values& values, char* buffer, size_t size, ssize_t& peeked) {
  prepare_setsockopt(::io_uring_get_sqe(&ring), fd, IPPROTO_TCP, TCP_REPAIR, values.on, kFirst);
  prepare_setsockopt(::io_uring_get_sqe(&ring), fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, values.queue, kOther);
  unsigned count = 4;
  if (buffer) {
    io_uring_sqe* sqe = ::io_uring_get_sqe(&ring);
    ::io_uring_prep_recv(sqe, fd, buffer, size, MSG_PEEK | MSG_DONTWAIT);
    sqe->user_data = kPeek;
    ++count;
  }
  prepare_setsockopt(::io_uring_get_sqe(&ring), fd, IPPROTO_TCP, TCP_REPAIR, values.off, kOther);
  prepare_setsockopt(::io_uring_get_sqe(&ring), fd, SOL_SOCKET, SO_REUSEADDR, values.reuse, kOther);
  if (const int sent = ::io_uring_submit(&ring); sent < 0) {
    errno = -sent;
    throw_errno("cannot read a TCP connection");
  }
  int failed = 0;
  bool first_failed = false;
  for (unsigned i = 0; i < count; ++i) {
    io_uring_cqe* cqe = nullptr;
    if (const int error = ::io_uring_wait_cqe(&ring, &cqe); error < 0) {
      errno = -error;
      throw_errno("cannot read a TCP connection");
    }
    if (cqe->user_data == kPeek) {
      peeked = cqe->res;
    } else if (cqe->res < 0) {
      failed = -cqe->res;
      first_failed = first_failed || cqe->user_data == kFirst;
    }
    ::io_uring_cqe_seen(&ring, cqe);
  }
  if (failed == 0) return true;
  if (first_failed && (failed == EOPNOTSUPP || failed == EINVAL || failed == EBADF)) return false;
  errno = failed;
  throw_errno("cannot read a TCP connection");
}

TcpQueuePeek::TcpQueuePeek() : ring_(std::make_unique<Ring>()) {}
TcpQueuePeek::~TcpQueuePeek() = default;

bool TcpQueuePeek::atomic() const { return ring_->usable; }

std::string TcpQueuePeek::peek(int fd, int queue, size_t most) {
  std::string data(most, '\0');
  char* const buffer = most > 0 ? data.data() : nullptr;
  const size_t size = most;
  Values values;
  values.queue = queue;
  values.reuse = socket_option(fd, SOL_SOCKET, SO_REUSEADDR);
  ssize_t peeked = 0;
  if (ring_->usable && !ring_->run(fd, values, buffer, size, peeked)) ring_->usable = false;
  if (!ring_->usable) call_by_call(fd, values, buffer, size, peeked);
  if (peeked < 0) {
    errno = static_cast<int>(-peeked);
    throw_errno("cannot copy the data in a TCP connection");
  }
  data.resize(static_cast<size_t>(peeked));
  return data;
}

}  // namespace icp
