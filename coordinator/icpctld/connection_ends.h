// SPDX-License-Identifier: GPL-2.0-or-later
// The ends of TCP connections that the agents of a step named: which belong together.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <map>
#include <string>

#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

// One thread.
class ConnectionEnds {
 public:
  using List = google::protobuf::RepeatedPtrField<net::ConnectionEnd>;

  // Replaces what the node said before.
  void set(const std::string& node, const List& ends) { ends_[node] = ends; }
  size_t nodes() const { return ends_.size(); }
  // The other ends of those that `node` named, as far as other nodes named them.
  List others_of(const std::string& node) const;

 private:
  std::map<std::string, List> ends_;
};

}  // namespace icp
