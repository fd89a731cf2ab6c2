// SPDX-License-Identifier: GPL-2.0-or-later
// What is known of the TCP sockets of a capsule before one of them is judged.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "engine/files/inet_address.h"
#include "engine/files/network.h"

namespace icp {

struct TcpFacts {
  enum class Role {
    kGone,         // closed while it was looked at (a check of running processes)
    kForeign,      // of another network namespace
    kUnconnected,  // perhaps bound
    kListening,
    kConnecting,
    kConnected,   // both ends in this capsule
    kOpenEnd,     // the other end may be in another capsule
    kOutside,     // it is neither here nor in another capsule
    kUnaccepted,  // the other end waits in a listening socket of this capsule
    kPending,     // kUnaccepted, and nothing has been sent: it can be made again
    kClosing,     // the other end was closed with data still on its way
    kEnded,       // the other end was closed
    kBroken,      // reset by the other end, or another error
    kUrgent,      // urgent data
    kKept,        // kOutside, and goes on after a restart
  };
  Role role = Role::kGone;
  uint8_t state = 0;  // TcpState
  InetAddress local, remote;
  uint32_t unaccepted = 0, backlog = 0;  // of a listener
  uint32_t pending = 0;                  // of a listener: those of the unaccepted that are kPending
  bool shut_read = false;
  // Bytes of data over its life; `unsent`: written by the program, not sent yet.
  uint64_t sent_bytes = 0, received_bytes = 0, unsent = 0;
  bool received_fin = false;
  uint32_t other = 0;  // kConnected: the description of the other end; kPending: that of the listener
};

struct InetSurvey {
  ExternalTcp external = ExternalTcp::kRefuse;
  HeldConnections* held = nullptr;
  bool several = false;              // the capsule is one of several of a job
  std::map<uint32_t, TcpFacts> tcp;  // by Description::id
  std::vector<ConnectionEnd> open_ends;
  std::set<std::pair<InetAddress, InetAddress>> inside;  // open ends whose other ends are in another capsule
};

}  // namespace icp
