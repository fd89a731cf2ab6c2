// SPDX-License-Identifier: GPL-2.0-or-later
// TCP connections to the outside that go on after a restart (ExternalTcp::kKeep), from the stop of the version with
// which the job ends until then. A filter on the socket drops whatever comes, so that nothing is acknowledged that the
// version has not, and nothing answered by a reset; the other end tries again. When the processes are gone a process of
// its own holds the sockets, in repair mode, in which closing them is not told to the other end.
#pragma once

#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/files/inet_address.h"

namespace icp {

class HeldConnections {
 public:
  HeldConnections() = default;
  // The processes go on: so do the connections.
  ~HeldConnections();
  HeldConnections(const HeldConnections&) = delete;
  HeldConnections& operator=(const HeldConnections&) = delete;

  // `fd` of a connection without a filter of its own. Throws Error.
  void hold(int fd);
  // Before the processes are killed: from now on until a restart asks for them, or kMostHeld is over.
  void outlive();

  // At a restart. Returns when the connection is nobody's any more; also when nobody has held it.
  static void release(const InetAddress& local, const InetAddress& remote);

 private:
  std::vector<UniqueFd> sockets_;
};

// Whether the connection can be held. False for one with a filter of the program's own.
bool can_be_held(int fd);

}  // namespace icp
