// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/restart.h"

#include <fmt/format.h>

namespace icp {

void Restart::fail(const std::string& why) {
  phase_ = 3;
  why_ = why;
  net::ToPeer message;
  message.mutable_restart_go()->set_error(why);
  for (const std::string& node : known_) send_(node, message);
}

void Restart::lost(const std::string& node) {
  known_.erase(node);
  if (!over()) fail(fmt::format("the agent on {} is gone", node));
}

void Restart::ready(const std::string& node, const net::RestartReady& message) {
  known_.insert(node);
  if (over()) {
    net::ToPeer late;
    late.mutable_restart_go()->set_error(why_.empty() ? "the step runs already" : why_);
    return send_(node, late);
  }
  if (!message.error().empty()) return fail(fmt::format("{}: {}", node, message.error()));
  if (message.phase() != phase_ + 1 || !there_.insert(node).second) {
    return fail(fmt::format("{} did something out of turn", node));
  }
  if (message.phase() == 1) {
    if (version_ == 0) version_ = message.version();
    if (version_ != message.version()) {
      return fail(fmt::format("the nodes disagree: {} would restore version {}, another one version {}", node,
                              message.version(), version_));
    }
    addresses_.MergeFrom(message.addresses());
  }
  if (message.phase() <= 2) ends_.set(node, message.ends());
  if (there_.size() < nodes_) return;
  phase_ = message.phase();
  there_.clear();
  for (const std::string& other : known_) {
    net::ToPeer go;
    go.mutable_restart_go()->set_phase(phase_);
    if (phase_ == 1) *go.mutable_restart_go()->mutable_addresses() = addresses_;
    if (phase_ <= 2) *go.mutable_restart_go()->mutable_ends() = ends_.others_of(other);
    send_(other, go);
  }
}

}  // namespace icp
