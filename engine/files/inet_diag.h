// SPDX-License-Identifier: GPL-2.0-or-later
// What the kernel knows about TCP connections that no descriptor of ours leads to (sock_diag(7)).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <utility>

#include "engine/base/unique_fd.h"
#include "engine/files/inet_address.h"

struct inet_diag_msg;

namespace icp {

// States of a TCP socket, as tcp_info and inet_diag tell them (include/net/tcp_states.h of the kernel).
enum TcpState : uint8_t {
  kTcpEstablished = 1,
  kTcpSynSent,
  kTcpSynReceived,
  kTcpFinWait1,
  kTcpFinWait2,
  kTcpTimeWait,
  kTcpClose,
  kTcpCloseWait,
  kTcpLastAck,
  kTcpListen,
  kTcpClosing,
  kTcpNewSynReceived,
};

inline bool has_sent_fin(uint8_t state) {
  return state == kTcpFinWait1 || state == kTcpFinWait2 || state == kTcpClosing || state == kTcpLastAck;
}
inline bool has_received_fin(uint8_t state) {
  return state == kTcpCloseWait || state == kTcpLastAck || state == kTcpClosing;
}

struct InetDiag {
  uint8_t state = 0;  // TcpState
  uint32_t ino = 0;   // 0: no process has it: closed by all, or waiting to be accepted
  uid_t uid = 0;
  uint32_t unread = 0;  // bytes that wait to be read, urgent data and what is behind them counted
  // Closed by everybody, only the kernel still knows it.
  bool leftover() const;
};

// A netlink socket in the network namespace of the calling thread. Not thread-safe.
class InetDiagSocket {
 public:
  InetDiagSocket();
  // The TCP connection whose own end is `local`; nothing if there is none.
  std::optional<InetDiag> query(const InetAddress& local, const InetAddress& remote);
  // Whether another user than `uid` listens at a TCP port of this host, at whatever address.
  bool others_listen(uint16_t port, uid_t uid);
  // Ends what the kernel still remembers of connections that all processes have closed: the one of these two addresses,
  // or, without `remote`, all of the port of `local`. Only those of user `uid`, and those in TIME_WAIT, which belong
  // to nobody. Does nothing where the kernel cannot (CONFIG_INET_DIAG_DESTROY).
  void end_leftovers(const InetAddress& local, const std::optional<InetAddress>& remote, uid_t uid);

 private:
  UniqueFd fd_;
};

// What shutdown(2) has closed of datagram sockets, of which all of a host are asked for at once.
class DatagramDiag {
 public:
  // Of a socket of this domain and protocol. 1: no more reading, 2: no more writing.
  int shutdown_of(int fd, int domain, int protocol);

 private:
  using Table = std::map<uint64_t, int>;        // by cookie
  std::map<std::pair<int, int>, Table> known_;  // by domain and protocol
};

}  // namespace icp
