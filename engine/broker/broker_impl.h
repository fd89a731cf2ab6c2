// SPDX-License-Identifier: GPL-2.0-or-later
// Inner part of the broker: its two ends, and their messages.
#pragma once

#include <memory>
#include <string>

#include "engine/base/unique_fd.h"
#include "engine/broker/broker.h"

namespace icp {

// Numbers of the operations in messages; the program's own begin at kFirstOfProgram.
enum class BrokerOp : uint32_t {
  kStartInit,
  kKnow,
  kOpenIpc,
  kWatchMake,
  kWatchOutdated,
  kWatchInodes,
  kWatchChanges,
  kWatchBegin,
  kWatchEnd,
  kWatchTake,
  kMappedOutside,
  kHeldOpen,
  kTrack,
  kHasModule,
  kTcpRepair,
  kTcpPeek,
  kTcpWiden,
  kEndLeftovers,
  kWatchedPaths,
  kThreadFilters,
  kJoin,
  kTcpBind,
  kFirstOfProgram = 100,
};

// Requests are small; replies hold at most the queue of a TCP connection.
inline constexpr uint64_t kMostRequest = 4 << 20, kMostReply = 256 << 20;  // bytes

void set_broker(std::unique_ptr<Broker> broker);
std::unique_ptr<Broker> make_user_namespace_broker();
std::unique_ptr<Broker> make_direct_broker(BrokerOptions options);
std::unique_ptr<Broker> make_broker_client(UniqueFd socket);
// Answers until the worker (the parent of this process) is gone.
void serve_broker(int socket, const BrokerOptions& options, pid_t worker);

}  // namespace icp
