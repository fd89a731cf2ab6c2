// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/steps.h"

#include <signal.h>

#include <algorithm>
#include <set>

#include "coordinator/duration.h"
#include "coordinator/icpctld/steps_impl.h"
#include "coordinator/protocol/slurm_errors.h"

namespace icp {
namespace {

using boost::system::error_code;
using std::chrono::milliseconds;

constexpr uint32_t kMaxNodes = 100'000, kMaxLaunched = 9999;
constexpr size_t kMaxName = 256, kMaxPath = 4096;
constexpr uint32_t kMaxVersion = 1u << 30;  // numbers above it are no versions

bool sensible(const net::AgentHello& hello) {
  return hello.job() != 0 && !hello.node().empty() && hello.node().size() <= kMaxName &&
         hello.host().size() <= kMaxName && hello.image().size() <= kMaxPath && hello.nodes() != 0 &&
         hello.nodes() <= kMaxNodes && hello.capsules_to_restore() <= kMaxNodes && hello.launched() <= kMaxLaunched &&
         hello.recent_size() <= 64 && hello.highest_version() <= kMaxVersion &&
         hello.interval_ms() <= static_cast<uint64_t>(milliseconds(kLongestDuration).count());
}

bool sensible(const net::IpcObjects& report) {
  constexpr int kMostObjects = 4096, kMostProcesses = 32;  // as agents tell them
  return report.objects_size() <= kMostObjects &&
         std::all_of(report.objects().begin(), report.objects().end(), [](const net::IpcObject& object) {
           return object.kind().size() <= kMaxName && object.attached_pids_size() <= kMostProcesses;
         });
}

void heard_of_version(Step& step, uint32_t version) {
  if (version <= kMaxVersion) step.highest_version = std::max(step.highest_version, version);
}

}  // namespace

Steps::Steps(boost::asio::io_context& io, const Config& config, Catalog& catalog, milliseconds missing)
    : io_(io),
      config_(config),
      catalog_(catalog),
      missing_(missing),
      // An agent may still wait in a round of the icpctld before this one: its number must not come again.
      next_round_(static_cast<uint64_t>(
          std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
              .count())),
      random_(std::random_device{}()) {}

std::shared_ptr<Step> Steps::agent_came(const net::AgentHello& hello, SendToAgent send, std::string& why) {
  const std::string& node = hello.node();
  if (!sensible(hello)) {
    why = "its hello makes no sense";
    return nullptr;
  }
  const StepKey key{hello.job(), hello.step(), hello.restarts()};
  std::shared_ptr<Step> step = steps_[key];
  const bool fresh = !step;
  if (fresh) {
    step.reset(new Step(io_));
    steps_[key] = step;
    step->facts.key = key;
    step->facts.uid = hello.uid();
    step->facts.image = hello.image();
    step->facts.nodes = 0;
    step->facts.interval_ms = hello.interval_ms();
    step->facts.running = true;
  }
  if (step->facts.uid != hello.uid() || step->facts.image != hello.image() || !add_part(*step, hello)) {
    why = fmt::format("it contradicts other agents of step {}", name_of(key));
    if (step->agents.empty()) steps_.erase(key);
    return nullptr;
  }
  // A second agent of the node: the first one's connection is dead and not noticed yet.
  if (step->round && step->agents.contains(node)) step->round->lost(node, "it connected again");
  step->agents[node] = std::move(send);
  step->hellos[node] = hello;
  step->facts.at_preempt = step->facts.at_preempt || hello.at_preempt();
  step->facts.lost_hosts.erase(hello.host());
  heard_of_version(*step, hello.highest_version());
  // Once a step: a thousand agents of one that come together are one write.
  if (fresh) record([&] { catalog_.step_seen(step->facts); });
  if (fresh) record([&] { catalog_.run_seen({key.job, key.restarts}, step->facts.uid, ""); });
  if (fresh) record_held(*step);
  held(*step, node, hello.held());
  step->gone_.erase(node);
  if (fresh && !step->complete()) watch_missing(step);
  net::ToPeer welcome;
  welcome.mutable_welcome()->set_scheduled(true);
  step->agents[node](welcome);
  if (step->round) advanced(step);
  if (hello.restoring() && !step->restart) {
    const uint32_t all = std::max(hello.capsules_to_restore(), step->facts.nodes);
    step->restart = std::make_unique<Restart>(all, sender(step));
  }
  settled(step);
  return step;
}

// False when it contradicts what other agents of the part said.
bool Steps::add_part(Step& step, const net::AgentHello& hello) {
  const auto [part, fresh] = step.parts.emplace(hello.launched(), hello.nodes());
  if (!fresh) return part->second == hello.nodes();
  step.facts.nodes += hello.nodes();
  return true;
}

// A launched step has ended, all of whose agents have gone: the script goes on without. One that is lost otherwise is
// missed.
void Steps::part_left(Step& step, uint32_t launched) {
  const auto part = step.parts.find(launched);
  if (launched == 0 || part == step.parts.end()) return;
  for (const auto& [node, hello] : step.hellos)
    if (hello.launched() == launched) return;
  step.facts.nodes -= part->second;
  step.parts.erase(part);
}

// Messages to the agents of a step that are still there.
std::function<void(const std::string&, const net::ToPeer&)> Steps::sender(const std::shared_ptr<Step>& step) const {
  return [weak = std::weak_ptr(step)](const std::string& node, const net::ToPeer& message) {
    const auto live = weak.lock();
    if (!live) return;
    const auto agent = live->agents.find(node);
    if (agent != live->agents.end()) agent->second(message);
  };
}

// A step of which agents are missing has no versions, and its user would not know.
void Steps::watch_missing(const std::shared_ptr<Step>& step) {
  step->missing_timer_.expires_after(missing_);
  step->missing_timer_.async_wait([this, weak = std::weak_ptr(step)](error_code error) {
    const auto live = weak.lock();
    if (!error && live && !live->agents.empty() && !live->complete()) tell_missing(*live);
  });
}

// One agent is enough to tell.
void Steps::tell_missing(Step& step) {
  if (step.restart || step.facts.interval_ms == 0) return;
  std::string text;
  for (const auto& [node, why] : step.gone_) text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", node, why);
  const size_t known = step.agents.size() + step.gone_.size();
  if (known < step.facts.nodes) {
    text += fmt::format("{}nothing was heard of {} of its {} nodes", text.empty() ? "" : ", ", step.facts.nodes - known,
                        step.facts.nodes);
  }
  if (text.size() > kLongestErrorText) text.resize(kLongestErrorText);
  spdlog::warn("step {}: no versions: {}", name_of(step), text);
  net::ToPeer message;
  message.mutable_abort()->set_reason(text);
  step.agents.begin()->second(message);
}

// All nodes on which the run has steps now.
void Steps::record_run(const Step& step) {
  const StepKey& key = step.facts.key;
  std::set<std::string> hosts;
  for (const auto& other : running(key.job, std::nullopt)) {
    if (other->facts.key.restarts != key.restarts) continue;
    for (const auto& [node, hello] : other->hellos) hosts.insert(hello.host());
  }
  std::string nodes;
  for (const std::string& host : hosts)
    if (nodes.size() < kLongestErrorText) nodes += (nodes.empty() ? "" : ",") + host;
  record([&] { catalog_.run_seen({key.job, key.restarts}, step.facts.uid, nodes); });
}

// After an agent came, or a restart is through.
void Steps::settled(const std::shared_ptr<Step>& step) {
  if (!step->complete()) return;
  record_run(*step);
  step->missing_timer_.cancel();
  record_known_versions(*step);
  spdlog::info("step {}: {} agent{}, interval {} ms", name_of(*step), step->facts.nodes,
               step->facts.nodes == 1 ? "" : "s", step->facts.interval_ms);
  if (step->facts.interval_ms > 0 && !step->round && step->next_due == std::chrono::system_clock::time_point{}) {
    step->due_ = Step::Clock::now();
    plan_next(step);
  }
}

// Versions that were committed while no icpctld was there, or whose last word was lost with it: those that every agent
// of the step knows.
void Steps::record_known_versions(Step& step) {
  std::map<uint32_t, std::pair<size_t, net::VersionNumbers>> known;
  for (const auto& [node, hello] : step.hellos) {
    for (const net::VersionNumbers& numbers : hello.recent()) {
      auto& [count, sum] = known[numbers.version()];
      if (count++ == 0) {
        sum = numbers;
        continue;
      }
      sum.set_bytes(sum.bytes() + numbers.bytes());
      sum.set_pages(sum.pages() + numbers.pages());
      sum.set_processes(sum.processes() + numbers.processes());
      sum.set_stop_ns(std::max(sum.stop_ns(), numbers.stop_ns()));
      sum.set_total_ns(std::max(sum.total_ns(), numbers.total_ns()));
    }
  }
  for (const auto& [version, counted] : known) {
    if (counted.first != step.facts.nodes) continue;
    const net::VersionNumbers& numbers = counted.second;  // clang captures no structured binding
    record([&] { catalog_.version(step.facts.key, numbers, step.facts.nodes); });
  }
}

void Steps::agent_left(const std::shared_ptr<Step>& step, const std::string& node, const std::string& reason) {
  const bool was_complete = step->complete();
  const auto hello = step->hellos.find(node);
  const uint32_t launched = hello == step->hellos.end() ? 0 : hello->second.launched();
  const bool has_ended = step->gone_.contains(node);  // it has said so
  if (!has_ended && hello != step->hellos.end()) step->facts.lost_hosts.insert(hello->second.host());
  step->agents.erase(node);
  step->gone_.try_emplace(node, fmt::format("its agent is gone ({})", reason));
  step->hellos.erase(node);
  step->idle.erase(node);
  step->ipc.erase(node);
  if (step->round) {
    step->round->lost(node, reason);
    advanced(step);
  }
  if (step->restart) step->restart->lost(node);
  if (has_ended) part_left(*step, launched);
  if (!step->agents.empty()) {
    if (was_complete) watch_missing(step);
    return;
  }
  step->missing_timer_.cancel();
  step->due_timer_.cancel();
  step->phase_timer_.cancel();
  if (step->request_ && step->waiting_) {
    const auto told = step->request_->finished;
    step->request_.reset();
    if (told) told(net::kAlreadyDone, "the step has ended");
  }
  record([&] { catalog_.step_ended(step->facts.key); });
  steps_.erase(step->facts.key);
  spdlog::info("step {}: its last agent has left ({})", name_of(*step), reason);
  const StepKey& key = step->facts.key;
  for (const auto& other : running(key.job, std::nullopt)) {
    if (other->facts.key.restarts != key.restarts) continue;
    other->facts.lost_hosts.insert(step->facts.lost_hosts.begin(), step->facts.lost_hosts.end());
    other->facts.at_preempt = other->facts.at_preempt || step->facts.at_preempt;
    return;
  }
  record([&] { catalog_.run_ended({key.job, key.restarts}); });
  if (events_.run_ended) events_.run_ended(step->facts);
}

void Steps::agent_said(const std::shared_ptr<Step>& step, const std::string& node, const net::ToCoordinator& message) {
  if (message.has_done() && step->round) {
    step->round->done(node, message.done());
    heard_of_version(*step, step->round->highest_version());
    advanced(step);
  } else if (message.has_survey() && step->round) {
    step->round->survey(node, message.survey());
  } else if (message.has_ready() && step->restart) {
    const net::RestartReady& ready = message.ready();
    if (ready.phase() == 3 && ready.has_hello()) {
      step->hellos[node] = ready.hello();
      heard_of_version(*step, ready.hello().highest_version());
    }
    step->restart->ready(node, ready);
    // One that failed stays: agents that come only now must hear why.
    if (step->restart->over() && !step->restart->failed()) {
      step->restart.reset();
      settled(step);
    }
  } else if (message.has_version()) {
    heard_of_version(*step, message.version().numbers().version());
    // Each is a row in a file that is everybody's.
    if (!step->told_.take(step->facts.uid, Step::Clock::now())) return;
    if (step->facts.nodes == 1) record([&] { catalog_.version(step->facts.key, message.version().numbers(), 1); });
  } else if (message.has_held()) {
    held(*step, node, message.held().held());
  } else if (message.has_idle()) {
    constexpr uint64_t kMost = 365ull * 24 * 3600 * 1000;
    idle(*step, node, milliseconds(std::min(message.idle().idle_ms(), kMost)));
  } else if (message.has_near()) {
    const uint32_t signal = message.near().signal() == 0 ? SIGTERM : message.near().signal();
    if (signal < NSIG) version_at_signal(step, signal, message.near().after_round());
  } else if (message.has_end()) {
    step->gone_[node] = "its tasks have ended";
    const std::string why = message.end().restart_failure().substr(0, kLongestErrorText);
    if (!why.empty() && events_.restart_failed) events_.restart_failed(step->facts, why);
  } else if (message.has_ipc()) {
    if (sensible(message.ipc())) step->ipc[node] = message.ipc();
  }
}

void Steps::held(Step& step, const std::string& node, bool held) {
  if (held ? !step.held.insert(node).second : step.held.erase(node) == 0) return;
  record_held(step);
}

// A step hangs when all its agents say so: one whose processes wait for those of another node does not.
void Steps::idle(Step& step, const std::string& node, milliseconds idle) {
  if (idle.count() == 0) {
    step.idle.erase(node);
    step.hung = false;
    return;
  }
  step.idle[node] = idle;
  if (step.hung || !step.complete() || step.round || config_.hang_after.count() == 0) return;
  milliseconds shortest = idle;
  for (const auto& [agent, send] : step.agents) {
    const auto of_agent = step.idle.find(agent);
    if (of_agent == step.idle.end()) return;
    shortest = std::min(shortest, of_agent->second);
  }
  if (shortest < config_.hang_after) return;
  step.hung = true;
  if (events_.hung) events_.hung(step.facts, shortest);
}

// What a run loses is what its steps have done since their last versions: nothing, when all of them are held.
void Steps::record_held(const Step& step) {
  const StepKey& key = step.facts.key;
  bool all = true;
  for (const auto& other : running(key.job, std::nullopt)) {
    // A script whose steps are checkpointed is not.
    const bool counts = other->facts.key.restarts == key.restarts && (other->facts.key.step >= 0 || key.step < 0);
    all = all && (!counts || other->ends_with_version());
  }
  record([&] { catalog_.run_held({key.job, key.restarts}, all); });
}

std::vector<std::shared_ptr<Step>> Steps::running(uint32_t job, std::optional<int32_t> wanted) const {
  std::vector<std::shared_ptr<Step>> found;
  for (auto at = steps_.lower_bound({job, INT32_MIN, 0}); at != steps_.end() && at->first.job == job; ++at) {
    if (!wanted || at->first.step == *wanted) found.push_back(at->second);
  }
  return found;
}

bool Steps::is_disabled(const Step& step) const {
  return catalog_.disabled(step.facts.key.job, std::nullopt) > 0 ||
         catalog_.disabled(step.facts.key.job, step.facts.key.step) > 0;
}

}  // namespace icp
