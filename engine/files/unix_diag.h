// SPDX-License-Identifier: GPL-2.0-or-later
// What the kernel knows about AF_UNIX sockets (sock_diag(7)): above all, who is connected to whom.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"

namespace icp {

struct UnixDiag {
  uint32_t ino = 0;
  int type = 0;  // SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET
  bool listening = false;
  bool has_peer = false;
  uint32_t peer_ino = 0;  // 0 with has_peer: the peer is closed, or not accepted yet
  std::string name;       // as bound: a path, or starting with a zero byte (abstract)
  int shutdown = 0;       // 1: no more reading, 2: no more writing
  uint32_t queued = 0;    // bytes waiting; connections waiting to be accepted if listening
  uint32_t backlog = 0;
  uint32_t outgoing = 0;          // bytes sent that the other end has not read
  uint32_t path_ino = 0;          // of the file it is bound to, cut to 32 bits; 0: none
  std::vector<uint32_t> pending;  // of a listener: who has connected and is not accepted, in this order
};

// A netlink socket in the network namespace of the calling thread. Not thread-safe.
class UnixDiagSocket {
 public:
  UnixDiagSocket();
  // Nothing if there is no such socket in this network namespace.
  std::optional<UnixDiag> query(uint32_t ino);
  // Asks for all at once, from where query() takes its answers from then on.
  void dump();

 private:
  UniqueFd fd_;
  std::optional<std::map<uint32_t, UnixDiag>> all_;
};

}  // namespace icp
