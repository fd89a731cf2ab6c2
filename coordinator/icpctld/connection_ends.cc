// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/connection_ends.h"

#include <set>
#include <tuple>
#include <utility>

namespace icp {
namespace {

using Address = std::tuple<std::string, uint32_t, uint32_t>;
using Pair = std::pair<Address, Address>;

Address local(const net::ConnectionEnd& end) { return {end.local_ip(), end.local_port(), end.local_scope()}; }
Address remote(const net::ConnectionEnd& end) { return {end.remote_ip(), end.remote_port(), end.remote_scope()}; }

}  // namespace

ConnectionEnds::List ConnectionEnds::others_of(const std::string& node) const {
  List found;
  const auto own = ends_.find(node);
  if (own == ends_.end() || own->second.empty()) return found;
  std::set<Pair> wanted;
  for (const net::ConnectionEnd& end : own->second) wanted.insert({remote(end), local(end)});
  for (const auto& [other, ends] : ends_) {
    if (other == node) continue;
    for (const net::ConnectionEnd& end : ends) {
      if (wanted.contains({local(end), remote(end)})) *found.Add() = end;
    }
  }
  return found;
}

}  // namespace icp
