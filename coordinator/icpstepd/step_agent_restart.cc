// SPDX-License-Identifier: GPL-2.0-or-later
// The restart half of StepAgent: from proxies to restored processes, and their ends.
#include <fcntl.h>
#include <signal.h>
#include <spdlog/spdlog.h>

#include <set>

#include "coordinator/checkpoint_moments.h"
#include "coordinator/icpstepd/network_exchange.h"
#include "coordinator/icpstepd/step_agent.h"
#include "engine/base/process_signal.h"
#include "engine/base/procfs.h"
#include "engine/restore/shared_host.h"

namespace icp {

using protocol::Packet;
namespace {

constexpr auto kRestartWait = std::chrono::minutes(10);  // for the other nodes' tasks to start, and for their images

constexpr auto kTellWait = std::chrono::seconds(5);  // for the connection to the coordinator

}  // namespace

// ---- which capsules ---------------------------------------------------------------------------

void StepAgent::refuse_restart(Error error) {
  // Another agent may have a capsule with the name of this node.
  facts_.capsule = "node " + facts_.node;
  refused_ = std::move(error);
}

// With launched steps, only versions of the same ones can be tried one after the other.
void StepAgent::keep_versions_of_all(size_t own) {
  capsules_to_restore_ = static_cast<uint32_t>(own);
  if (facts_.launched == 0 && !launched_.any()) return;
  capsules_to_restore_ =
      static_cast<uint32_t>(keep_versions_of_same_capsules(plan_->image, identity_of(facts_), plan_->versions));
}

// Which part of the image the tasks of this node are.
void StepAgent::choose_capsules() {
  std::vector<CapsulePart> here;
  std::set<int> ranks;
  for (const auto& [rank, task] : tasks_) ranks.insert(rank);
  // Of several nodes all find the same ones damaged.
  while (here.empty()) {
    const uint32_t version = plan_->versions.front();
    try {
      here = capsules_of(plan_->image, version, identity_of(facts_), ranks, facts_.launched);
    } catch (const Error& error) {
      spdlog::warn("version {}: {}", version, error.what());
      if (plan_->versions.size() == 1) return;  // restore_step() says so
      plan_->damaged.push_back(fmt::format("version {}: {}", version, error.what()));
      plan_->versions.erase(plan_->versions.begin());
    }
  }
  size_t held = 0;
  for (const CapsulePart& part : here) held += part.ranks.size();  // without those that had ended
  if (here.size() > 1 && facts_.total_tasks < held) {
    // Nobody will come for the others: every node knows that now, and the one with the first task says so.
    plan_->kind = StartPlan::kFail;
    plan_->text = !ranks.contains(0) ? ""
                                     : fmt::format(
                                           "{} holds {} tasks on {} nodes, this step has {}; start it with srun "
                                           "-n{}",
                                           plan_->image, held, here.size(), facts_.total_tasks, held);
    return;
  }
  facts_.capsules = static_cast<uint32_t>(here.size());
  try {
    if (may_launch() && here.size() == 1) launched_.restore(here.front().state, plan_->image);
    keep_versions_of_all(here.size());
    here = capsules_here(std::move(here), plan_->image, ranks);
    facts_.capsule = here.front().name;
    if (here.size() == 1) return;
    if (config_.coordinators.empty()) {
      throw_error(ErrorKind::kUsage, "the tasks come from {} nodes, and that needs a coordinator (icpctld)",
                  here.size());
    }
    std::vector<CapsuleOnHost> together;
    for (const CapsulePart& part : here) together.push_back({part.name, part.host, &part.state});
    check_shared_host(together);
    capsule_agents_ = std::make_unique<CapsuleAgents>(facts_, here);
    for (const auto& [rank, task] : tasks_)
      capsule_agents_->slurmstepd_said(Packet(protocol::kTask).set_number("rank", rank).set_number("pid", task.pid));
  } catch (const Error& error) {
    refuse_restart(error);
  }
}

RestartTogether StepAgent::with_the_others() {
  if (!several_capsules()) return {};
  if (!link_) throw_error(ErrorKind::kUsage, "a step with tasks on several nodes is restored with a coordinator only");
  RestartTogether together;
  const CoordinatorLink::Wanted wanted = [this] {
    const auto lives = [](const auto& entry) { return ::kill(entry.second.pid, 0) == 0; };
    if (!std::any_of(tasks_.begin(), tasks_.end(), lives)) throw_error(ErrorKind::kGone, "the step has ended");
    launched_.check_restored();
  };
  together.chosen = [this, wanted](const net::RestartReady& ready) {
    if (tasks_.begin()->first == 0 && !link_->wait_scheduled(kPatience)) {
      tell_user(fmt::format(
          "slurm-icp: step {}: waits for the coordinator, without which nodes cannot be restored together", step()));
    }
    return link_->restart(ready, kRestartWait, wanted);
  };
  const auto met = std::make_shared<bool>(false);  // others may run from then on
  together.meet = [this, wanted, met](const std::vector<ConnectionEnd>& ends, uint32_t attempt) {
    net::RestartReady ready;
    ready.set_phase(2);
    ready.set_attempt(attempt);
    *ready.mutable_ends() = to_message(ends);
    const net::RestartGo go = link_->restart(ready, kRestartWait, wanted);
    *met = true;
    restart_attempt_ = attempt;
    return from_message(go.ends());
  };
  together.failed = [this, met](const Error& error, bool again, uint32_t attempt) {
    net::RestartReady ready;
    ready.set_error(with_hint(error));
    ready.set_attempt(attempt);
    ready.set_again(again && !*met);
    link_->restart(ready, kTellWait, {});
    return ready.again();
  };
  return together;
}

// ---- proxies and processes -----------------------------------------------------------------------------------

void StepAgent::on_proxy(Task& task, Packet& packet) {
  if (packet.type == protocol::kStreams && packet.fds.size() >= 3 && !task.lent_all && !capsule_) {
    for (size_t i = 0; i < 3; i++) task.lent.fds[i].reset(packet.fds[i]);
    if (packet.fds.size() > 3) task.lent.pmi.reset(packet.fds[3]);
    packet.fds.clear();
    task.lent.pid = task.pid;
    task.lent.cpus = task.cpus;
    task.lent_all = true;
    restore_when_all_lent();
    return;
  }
  packet.close_fds();
  const auto signal = packet.number("signal");
  if (packet.type != protocol::kSignal || !signal || *signal < 1 || *signal >= NSIG || !capsule_) return;
  if (is_moment(static_cast<int>(*signal))) return on_signal(task, static_cast<int>(*signal));
  pass_signal(task, static_cast<int>(*signal));
}

void StepAgent::pass_signal(const Task& task, int signal) const {
  for (const TaskRoot& root : capsule_->roots()) {
    if (root.rank != task.rank) continue;
    if (signalled_ == Signalled::kTree) {
      signal_tree(root, signal);
    } else {
      signal_process(root.pid, root.start_time, signal);
    }
  }
}

void StepAgent::restore_when_all_lent() {
  if (tasks_.size() != facts_.local_tasks) return;
  std::map<int, ProxyStreams> proxies;
  for (const auto& [rank, task] : tasks_) {
    if (!task.lent_all) return;
  }
  for (auto& [rank, task] : tasks_) proxies[rank] = std::move(task.lent);
  try {
    if (refused_) throw *refused_;
    after_restore(restore_step(*plan_, facts_, config_, proxies, pmix_.restored_end(), launched_.restored_ends(),
                               with_the_others()));
  } catch (const Error& error) {
    give_up_restart(error);
  }
}

// Or they would wait for this one.
bool StepAgent::tell_the_others(const std::string& error) {
  if (!several_capsules() || !link_) return false;
  try {
    net::RestartReady ready;
    ready.set_error(error);
    link_->restart(ready, kTellWait, {});
    return true;
  } catch (const Error& failed) {
    spdlog::warn("{}", failed.what());
    return false;
  }
}

// icpctld holds the job: before its script sees that srun has failed, and ends.
void StepAgent::tell_coordinator_of_failure(const std::string& error) {
  if (config_.coordinators.empty() || facts_.restarts == 0 || facts_.launched != 0) return;
  if (!link_) start_link();
  if (!link_ || !link_->wait_scheduled(kTellWait)) return;
  net::ToCoordinator message;
  message.mutable_end()->set_restart_failure(error);
  link_->say(message);
}

void StepAgent::give_up_restart(const Error& error) {
  const std::string text = with_hint(error);
  // One sentence for the whole step: the agent of task 0 hears of what others met.
  const bool speaks = !tell_the_others(text) || tasks_.contains(0);
  if (speaks) tell_coordinator_of_failure(text);
  for (auto& [rank, task] : tasks_) {
    if (task.socket) fail_task(task, speaks ? "cannot restart: " + text : "");
  }
}

void StepAgent::after_restore(RestartResult result) {
  capsule_.emplace(std::move(result.capsule));
  launched_.restored();
  if (!several_capsules()) pmix_.serve();
  if (facts_.restarts > 0 && facts_.launched == 0) unmark_vacated(image_, identity_of(facts_));
  unmark_end(image_, identity_of(facts_));
  signalled_ = signalled_by_slurm(tasks_.begin()->second.pid, facts_.slurm_conf);
  const bool forward = signalled_ != Signalled::kCgroup;  // else the restored processes have it already
  for (auto& [rank, task] : tasks_) {
    if (task.socket) {
      protocol::send_packet(task.socket->native_handle(), Packet(protocol::kRestored).set_number("forward", forward));
    } else {
      on_proxy_gone(task);  // killed meanwhile
    }
  }
  if (!several_capsules() || tasks_.contains(0))  // one sentence for the whole step
    for (const std::string& line : result.passed_over) tell_user(line);
  tell_user(result.line);
  for (const TaskExit& ended : capsule_->ended())
    if (Task* const task = find(ended.rank); task != nullptr) end_task(*task, ended.status);
  capsule_events_ = std::make_unique<Socket>(io_, ::fcntl(capsule_->event_fd(), F_DUPFD_CLOEXEC, 3));
  when_readable(*capsule_events_, [this] { on_capsule(); });
  if (interval_.count() == 0 && moments_.empty() && config_.coordinators.empty()) return;
  try {
    const bool same_image = plan_->image == image_;
    prepare_image_path(image_, identity_of(facts_), same_image || facts_.restarts > 0 || facts_.launched != 0);
    SessionConfig config = versions_.session_config(image_, task_streams());
    pmix_.add_stream(config.outer);
    config.whole_ipc_namespace = true;  // the capsule's own
    find_sockets(config);
    config.more_processes = [this] { return read_children(capsule_->init_pid()); };
    config.ended_tasks = [this] { return ended_tasks(); };
    start_versions(same_image ? capsule_->continue_session(std::move(config))
                              : Session(std::move(config), capsule_->roots()));
  } catch (const Error& error) {
    notices_.complain(
        fmt::format("slurm-icp: step {}: no further checkpoints: {} (the job runs on)", step(), error.what()));
  }
  if (!several_capsules() || !link_) return;
  net::ToCoordinator message;
  message.mutable_ready()->set_phase(3);
  message.mutable_ready()->set_attempt(restart_attempt_);
  *message.mutable_ready()->mutable_hello() = hello();
  link_->set_hello(message.ready().hello());
  if (!pmix_.active()) return link_->say(message);
  for (const auto& [kind, ended] : pmix_.fences()) {
    net::Fence& fence = *message.mutable_ready()->add_fences();
    fence.set_what(kind);
    fence.set_ended(ended);
  }
  serve_pmix(message.ready());
}

// When all nodes' tasks are there, and it is known how far each is.
void StepAgent::serve_pmix(const net::RestartReady& ready) {
  Fences there;
  try {
    const net::RestartGo go = link_->restart(ready, kRestartWait, {});
    for (const net::Fence& fence : go.fences()) there[fence.what()] = fence.ended();
  } catch (const Error& error) {
    spdlog::warn("fences of PMIx are not known of the other nodes: {}", error.what());
  }
  pmix_.serve(there);
}

void StepAgent::on_capsule() {
  for (const TaskExit& ended : capsule_->take_exits()) {
    if (Task* const task = find(ended.rank); task != nullptr) end_task(*task, ended.status);
  }
  when_readable(*capsule_events_, [this] { on_capsule(); });
}

void StepAgent::end_task(Task& task, int status) {
  spdlog::debug("restored task {} ended with wait status 0x{:x}", task.rank, static_cast<unsigned>(status));
  if (!task.socket) return;
  task.status = status;  // as slurmstepd will say in a moment
  protocol::send_packet(task.socket->native_handle(), Packet(protocol::kExit).set_number("status", status));
  task.socket.reset();  // the proxy ends; slurmstepd says so
}

// A proxy that goes without being told was killed: so is its task, and with the last one all that is left.
void StepAgent::on_proxy_gone(Task& task) {
  if (!capsule_) {
    task.lent_all = false;
    return;
  }
  bool any_left = false;
  for (const auto& [rank, other] : tasks_) any_left = any_left || other.socket;
  if (!any_left) {
    capsule_->kill();
    return;
  }
  for (const TaskRoot& root : capsule_->roots()) {
    if (root.rank == task.rank) signal_process(root.pid, root.start_time, SIGKILL);
  }
}

}  // namespace icp
