// SPDX-License-Identifier: GPL-2.0-or-later
// The ends of TCP connections that the agents of a step named: which belong together.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

// One thread.
class ConnectionEnds {
 public:
  using List = google::protobuf::RepeatedPtrField<net::ConnectionEnd>;

  // Replaces what the node said before.
  void set(const std::string& node, const List& ends);
  size_t nodes() const { return ends_.size(); }
  // The other ends of those that `node` named, as far as other nodes named them.
  List others_of(const std::string& node) const;

 private:
  using Address = std::tuple<std::string, uint32_t, uint32_t>;  // ip, port, scope
  using Pair = std::pair<Address, Address>;                     // local, remote
  static Pair pair_of(const net::ConnectionEnd& end);

  std::map<std::string, List> ends_;
  // Looked up while the processes of all nodes are stopped: with n nodes it must not take n squared looks at all ends.
  std::map<Pair, std::vector<std::pair<std::string, net::ConnectionEnd>>> by_pair_;
};

}  // namespace icp
