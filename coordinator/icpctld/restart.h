// SPDX-License-Identifier: GPL-2.0-or-later
// A step on several nodes that is being restored: nobody runs before everybody is rebuilt. When a version cannot be
// restored somewhere, all try the one before it. One thread, no input or output: see Round.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "coordinator/icpctld/connection_ends.h"
#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

class Restart {
 public:
  using Send = std::function<void(const std::string& node, const net::ToPeer&)>;
  Restart(size_t nodes, Send send) : nodes_(nodes), send_(std::move(send)) {}

  void ready(const std::string& node, const net::RestartReady& message);
  void lost(const std::string& node);
  bool over() const { return phase_ == 3; }  // all run; or it failed
  bool failed() const { return failed_; }

 private:
  void fail(const std::string& why, bool again = false);
  net::ToPeer failure(uint32_t attempt) const;

  const size_t nodes_;
  const Send send_;
  uint32_t attempt_ = 0;  // which all are to make now
  uint32_t phase_ = 0;    // all have said this one
  uint32_t version_ = 0;
  bool failed_ = false;
  std::string why_;              // the last attempt failed
  std::set<std::string> there_;  // who said the next one
  std::set<std::string> known_;
  google::protobuf::RepeatedPtrField<net::NewAddress> addresses_;
  ConnectionEnds ends_;
  std::map<std::string, uint64_t> fences_;  // by what is asked: the most that somebody has been told the end of
};

}  // namespace icp
