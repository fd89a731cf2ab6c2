// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/round.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <utility>

namespace icp {
namespace {

const char* doing(net::Phase phase) {
  switch (phase) {
    case net::PREPARE:
      return "to look at the processes and copy while they run";
    case net::STOP:
    case net::COLLECT:
      return "to stop and collect";
    case net::WRITE:
      return "to write";
    default:
      return "to commit";
  }
}

}  // namespace

Round::Round(uint64_t id, uint32_t version, std::set<std::string> nodes, bool kill, RoundLimits limits, Send send)
    : id_(id),
      version_(version),
      nodes_(std::move(nodes)),
      kill_(kill),
      alone_(nodes_.size() == 1),
      limits_(limits),
      send_(std::move(send)) {}

std::chrono::milliseconds Round::limit() const {
  // A single agent does everything without asking in between.
  if (alone_) return limits_.prepare + limits_.stop + limits_.write;
  switch (phase_) {
    case net::PREPARE:
      return limits_.prepare;
    case net::STOP:
    case net::COLLECT:
      return limits_.stop;
    default:
      return limits_.write;
  }
}

void Round::begin(const std::string& image_dir, uint32_t signal) {
  phase_ = alone_ ? net::COMMIT : net::PREPARE;
  net::ToPeer message;
  net::BeginRound& begin = *message.mutable_begin();
  begin.set_round(id_);
  begin.set_version(version_);
  begin.set_kill(kill_);
  begin.set_alone(alone_);
  begin.set_last(signal == SIGTERM);
  if (signal != SIGTERM) begin.set_signal(signal);
  // The agent's own limit is the later one: when both run out at once, the coordinator's word tells why.
  begin.set_stop_timeout_ms(static_cast<uint32_t>(std::min<int64_t>((limits_.stop * 2).count(), UINT32_MAX)));
  begin.set_image_dir(image_dir);
  for (const std::string& node : nodes_) begin.add_nodes(node);
  for (const std::string& node : nodes_) send_(node, message);
}

void Round::go(net::Phase phase) {
  phase_ = phase;
  done_.clear();
  net::ToPeer message;
  message.mutable_go()->set_round(id_);
  message.mutable_go()->set_phase(phase);
  for (const std::string& node : nodes_) {
    if (phase == net::COLLECT) *message.mutable_go()->mutable_ends() = stopped_.others_of(node);
    send_(node, message);
  }
}

void Round::survey(const std::string& node, const net::Survey& message) {
  if (over_ || message.round() != id_ || !nodes_.contains(node)) return;
  surveyed_.set(node, message.ends());
  asking_.insert(node);
  if (surveyed_.nodes() < nodes_.size()) return;
  for (const std::string& asker : asking_) {
    net::ToPeer answer;
    answer.mutable_survey()->set_round(id_);
    *answer.mutable_survey()->mutable_ends() = surveyed_.others_of(asker);
    send_(asker, answer);
  }
  asking_.clear();
}

void Round::add(const net::VersionNumbers& numbers) {
  net::VersionNumbers& sum = result_.numbers;
  const bool first = committed_++ == 0;
  sum.set_version(version_);
  sum.set_taken_unix_ns(std::max(sum.taken_unix_ns(), numbers.taken_unix_ns()));
  sum.set_stop_ns(std::max(sum.stop_ns(), numbers.stop_ns()));
  sum.set_total_ns(std::max(sum.total_ns(), numbers.total_ns()));
  sum.set_bytes(sum.bytes() + numbers.bytes());
  sum.set_pages(sum.pages() + numbers.pages());
  sum.set_processes(sum.processes() + numbers.processes());
  sum.set_full((first || sum.full()) && numbers.full());
  sum.set_tracker(numbers.tracker());
}

void Round::done(const std::string& node, const net::PhaseDone& message) {
  if (over_ || message.round() != id_ || !nodes_.contains(node)) return;
  highest_ = std::max(highest_, message.highest_version());
  if (!message.error().empty()) {
    result_.hint = message.hint();
    result_.expected = message.expected();
    return fail(nodes_.size() == 1 ? message.error() : fmt::format("{}: {}", node, message.error()),
                message.transient());
  }
  if (message.phase() != phase_ || !done_.insert(node).second) {
    return fail(fmt::format("{} sent an unexpected phase message", node), true);
  }
  if (message.phase() == net::STOP) stopped_.set(node, message.ends());
  if (message.phase() == net::COMMIT) add(message.numbers());
  if (!all_done()) return;
  switch (phase_) {
    case net::PREPARE:
      return go(net::STOP);
    case net::STOP:
      return go(net::COLLECT);
    case net::COLLECT:
      return go(net::WRITE);
    case net::WRITE:
      return go(net::COMMIT);
    default:
      if (kill_) return;  // waits in may_kill()
      over_ = true;
      result_.committed = true;
  }
}

void Round::finish_kill() {
  go(net::FINISH);
  over_ = true;
  result_.committed = true;
}

void Round::fail(const std::string& why, bool transient, bool timed_out) {
  over_ = true;
  // What all have committed stays, whatever comes before the kill.
  result_.committed = committed_everywhere();
  result_.error = why;
  result_.transient = transient;
  result_.timed_out = timed_out;
  net::ToPeer message;
  message.mutable_abort()->set_round(id_);
  message.mutable_abort()->set_reason(why);
  for (const std::string& node : nodes_) send_(node, message);
}

void Round::lost(const std::string& node, const std::string& why) {
  if (!over_ && nodes_.contains(node)) fail(fmt::format("the agent on {} is gone: {}", node, why), true);
}

void Round::time_out() {
  if (over_) return;
  std::string missing;
  for (const std::string& node : nodes_) {
    if (!done_.contains(node)) missing += (missing.empty() ? "" : ", ") + node;
  }
  if (may_kill()) return fail(fmt::format("the job was not ended within {} ms", limit().count()), true, true);
  fail(fmt::format("{} took longer than {} ms {}", missing, limit().count(), doing(phase_)), true, true);
}

void Round::give_up(const std::string& why) {
  if (!over_) fail(why, false);
}

}  // namespace icp
