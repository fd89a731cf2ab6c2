// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/connection_ends.h"

#include <set>

namespace icp {

ConnectionEnds::Pair ConnectionEnds::pair_of(const net::ConnectionEnd& end) {
  return {{end.local_ip(), end.local_port(), end.local_scope()},
          {end.remote_ip(), end.remote_port(), end.remote_scope()}};
}

void ConnectionEnds::set(const std::string& node, const List& ends) {
  for (const net::ConnectionEnd& old : ends_[node]) {
    const auto found = by_pair_.find(pair_of(old));
    if (found == by_pair_.end()) continue;
    std::erase_if(found->second, [&](const auto& entry) { return entry.first == node; });
    if (found->second.empty()) by_pair_.erase(found);
  }
  ends_[node] = ends;
  for (const net::ConnectionEnd& end : ends) by_pair_[pair_of(end)].emplace_back(node, end);
}

ConnectionEnds::List ConnectionEnds::others_of(const std::string& node) const {
  List found;
  const auto own = ends_.find(node);
  if (own == ends_.end()) return found;
  std::set<Pair> wanted;  // each once, however often the node named it
  for (const net::ConnectionEnd& end : own->second) {
    auto [local, remote] = pair_of(end);
    wanted.emplace(std::move(remote), std::move(local));
  }
  for (const Pair& pair : wanted) {
    const auto ends = by_pair_.find(pair);
    if (ends == by_pair_.end()) continue;
    for (const auto& [other, end] : ends->second) {
      if (other != node) *found.Add() = end;
    }
  }
  return found;
}

}  // namespace icp
