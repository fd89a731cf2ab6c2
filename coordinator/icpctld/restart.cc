// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/restart.h"

#include <fmt/format.h>

#include <algorithm>

namespace icp {
namespace {

constexpr size_t kMostFences = 4096;  // kinds of a step; a program has a few

}  // namespace

net::ToPeer Restart::failure(uint32_t attempt) const {
  net::ToPeer message;
  message.mutable_restart_go()->set_attempt(attempt);
  message.mutable_restart_go()->set_error(why_.empty() ? "the step runs already" : why_);
  message.mutable_restart_go()->set_again(!over());
  return message;
}

void Restart::fail(const std::string& why, bool again) {
  why_ = why;
  const uint32_t failed = attempt_;
  if (again) {
    attempt_++;
    phase_ = version_ = 0;
    there_.clear();
    addresses_.Clear();
    ends_ = {};
  } else {
    phase_ = 3;
    failed_ = true;
  }
  for (const std::string& node : known_) send_(node, failure(failed));
}

void Restart::lost(const std::string& node) {
  known_.erase(node);
  if (!over()) fail(fmt::format("the agent on {} is gone", node));
}

void Restart::ready(const std::string& node, const net::RestartReady& message) {
  known_.insert(node);
  if (over()) return send_(node, failure(message.attempt()));
  const bool failed = !message.error().empty(), late = message.attempt() < attempt_;
  if (late && (!failed || message.again())) {  // it has not heard yet
    if (!failed) send_(node, failure(message.attempt()));
    return;
  }
  // With all rebuilt some may run already.
  if (failed) return fail(fmt::format("{}: {}", node, message.error()), message.again() && phase_ < 2);
  if (message.attempt() != attempt_) return fail(fmt::format("{} sent an unexpected phase message", node));
  if (message.phase() != phase_ + 1 || !there_.insert(node).second) {
    return fail(fmt::format("{} sent an unexpected phase message", node));
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
  for (const net::Fence& fence : message.fences())
    if (fences_.size() < kMostFences) fences_[fence.what()] = std::max(fences_[fence.what()], fence.ended());
  if (there_.size() < nodes_) return;
  phase_ = message.phase();
  there_.clear();
  for (const std::string& other : known_) {
    net::ToPeer go;
    go.mutable_restart_go()->set_phase(phase_);
    go.mutable_restart_go()->set_attempt(attempt_);
    if (phase_ == 1) *go.mutable_restart_go()->mutable_addresses() = addresses_;
    if (phase_ <= 2) *go.mutable_restart_go()->mutable_ends() = ends_.others_of(other);
    for (const auto& [what, ended] : fences_) {
      net::Fence& fence = *go.mutable_restart_go()->add_fences();
      fence.set_what(what);
      fence.set_ended(ended);
    }
    send_(other, go);
  }
}

}  // namespace icp
