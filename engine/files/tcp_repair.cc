// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/tcp_repair.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <array>
#include <cstring>

#include "engine/base/error.h"
#include "engine/broker/broker.h"
#include "engine/broker/tcp_queue.h"
#include "engine/files/file_kind.h"
#include "engine/files/inet_diag.h"
#include "engine/files/socket_option.h"

namespace icp {
namespace {

constexpr int kReceiveQueue = 1, kSendQueue = 2;  // enum of linux/tcp.h
constexpr size_t kSlack = 256 << 10;              // bytes: a segment that is acknowledged in part stays whole
constexpr int kTries = 1000;
// Without repair mode the numbers are not known; those of both ends have to fit, and any do: a connection that is made
// again has new ones.
constexpr uint32_t kAnyNumber = 1u << 20;

uint32_t sequence(int fd) { return static_cast<uint32_t>(socket_option(fd, IPPROTO_TCP, TCP_QUEUE_SEQ)); }

uint8_t state_of(int fd) {
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) throw_errno("cannot look at a TCP connection");
  return info.tcpi_state;
}

size_t amount(int fd, unsigned long request) {
  int bytes = 0;
  if (::ioctl(fd, request, &bytes) != 0) throw_errno("cannot see how much data is in a TCP connection");
  return bytes > 0 ? static_cast<size_t>(bytes) : 0;
}

}  // namespace

size_t bytes_waiting(int fd) { return amount(fd, SIOCINQ); }

bool TcpReader::atomic() { return TcpQueuePeek().atomic(); }

TcpReader::Outgoing TcpReader::outgoing(int fd) {
  Outgoing result;
  if (!broker().privileged()) {  // all has been delivered: see tcp_reconnect.h
    result.next = kAnyNumber + (has_sent_fin(state_of(fd)) ? 1 : 0);
    return result;
  }
  // No process writes any more, so this can only shrink.
  const size_t most = amount(fd, SIOCOUTQ);
  result.data = broker().peek_tcp_queue(fd, kSendQueue, most > 0 ? most + kSlack : 0);
  result.next = sequence(fd);
  return result;
}

TcpReader::Incoming TcpReader::incoming(int fd) {
  Incoming result;
  if (!broker().privileged()) {
    result.state = state_of(fd);
    result.next = kAnyNumber + (has_received_fin(result.state) ? 1 : 0);
    result.data = peek_stream(fd, bytes_waiting(fd));
    return result;
  }
  broker().peek_tcp_queue(fd, kReceiveQueue, 0);
  // More may come at any moment: number and amount must be of the same one.
  for (int tries = 0; tries < kTries; ++tries) {
    result.next = sequence(fd);
    result.state = state_of(fd);
    const size_t bytes = bytes_waiting(fd);
    if (sequence(fd) != result.next) continue;
    result.data = peek_stream(fd, bytes);
    return result;
  }
  throw_error(ErrorKind::kBusy, "a TCP connection receives data all the time");
}

std::string peek_stream(int fd, size_t bytes) {
  std::string data(bytes, '\0');
  if (bytes == 0) return data;
  int offset = -1;  // where a program's own MSG_PEEK goes on (SO_PEEK_OFF, for TCP since Linux 6.9)
  socklen_t length = sizeof offset;
  const bool peeking = ::getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, &length) == 0 && offset >= 0;
  const int none = -1;
  if (peeking) ::setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &none, sizeof none);
  const ssize_t got = ::recv(fd, data.data(), data.size(), MSG_PEEK | MSG_DONTWAIT);
  const int error = errno;
  if (peeking) ::setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset);
  errno = error;
  if (got < 0) throw_errno("cannot copy the data in a TCP connection");
  if (static_cast<size_t>(got) != bytes) {
    throw_error(ErrorKind::kBusy, "only {} of {} bytes in a TCP connection could be copied", got, bytes);
  }
  return data;
}

}  // namespace icp
