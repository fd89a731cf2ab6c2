// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/restart.h"

#include <fmt/chrono.h>
#include <signal.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <ctime>
#include <set>

#include "coordinator/icpstepd/capsule_layout.h"
#include "coordinator/icpstepd/cgroups.h"
#include "coordinator/icpstepd/image_choice.h"
#include "coordinator/icpstepd/network_exchange.h"
#include "coordinator/icpstepd/versions.h"
#include "engine/base/error.h"
#include "engine/base/process_signal.h"
#include "engine/base/procfs.h"
#include "engine/process/stopped_tree.h"

namespace icp {
namespace {

// The capsule that holds the tasks of this agent: each needs one of the new step to lend it its streams and its exit
// status.
CapsulePart part_of_tasks(const std::string& image, uint32_t version, const Identity& identity,
                          const std::map<int, ProxyStreams>& proxies, uint32_t launched) {
  std::set<int> ranks;
  for (const auto& [rank, proxy] : proxies) ranks.insert(rank);
  std::vector<CapsulePart> here = capsules_here(capsules_of(image, version, identity, ranks, launched), image, ranks);
  if (here.size() != 1) {
    throw_error(ErrorKind::kImage, "version {} of {} has another layout of tasks than the latest one", version, image);
  }
  return std::move(here[0]);
}

// Agrees with the other capsules of the step on the version and on addresses.
void choose_together(const RestartTogether& together, const CapsulePart& part, RestoreOptions& options) {
  net::RestartReady ready;
  ready.set_phase(1);
  ready.set_attempt(together.attempt);
  ready.set_version(options.version);
  *ready.mutable_addresses() = moved_addresses(part.state);
  *ready.mutable_ends() = ends_to_restore(part.state);
  const net::RestartGo go = together.chosen(ready);
  options.network.addresses = address_texts(go.addresses(), ready.addresses(), part.state);
  options.network.connections = new_connections(ready.ends(), go.ends());
}

// What was done after the version, when that is known.
std::string lost_after(const pb::Manifest& manifest, const std::string& image, const Identity& identity) {
  constexpr uint64_t kWorthSaying = 100;  // ms
  const uint64_t taken = manifest.taken_unix_ns() / 1'000'000, end = end_of_last_run(image, identity);
  if (end < taken + kWorthSaying) return {};
  return fmt::format("; {:.1f} s of work after it were lost", static_cast<double>(end - taken) / 1000);
}

std::string describe(const RestoredCapsule& capsule, const std::string& image, const Identity& identity) {
  const pb::Manifest& manifest = capsule.manifest();
  const std::time_t taken = static_cast<std::time_t>(manifest.taken_unix_ns() / 1'000'000'000);
  constexpr uint64_t kPage = 4096;
  return fmt::format("restarted from version {} of {}, taken {:%Y-%m-%d %H:%M:%S}: {}{}", capsule.version(), image,
                     fmt::localtime(taken),
                     counted_bytes(manifest.stats().processes(), manifest.stats().pages_total() * kPage),
                     lost_after(manifest, image, identity));
}

// What another version may not have: damage, a file that is no longer there.
bool older_may_do(const Error& error) {
  return error.kind() == ErrorKind::kImage || error.kind() == ErrorKind::kSystem ||
         error.kind() == ErrorKind::kPermission;
}

}  // namespace

RestartResult restore_step(const StartPlan& plan, const protocol::StepFacts& facts, const Config& config,
                           const std::map<int, ProxyStreams>& proxies, int pmix_relay,
                           const std::map<int, int>& launched, RestartTogether together) {
  RestoreOptions options;
  options.launched = launched;
  if (together.meet) options.network.meet = [&](const auto& ends) { return together.meet(ends, together.attempt); };
  options.image_path = plan.image;
  options.pmix_relay = pmix_relay;
  options.identity = identity_of(facts);
  options.path_map = plan.path_map;
  options.changed = config.changed_files;
  for (const auto& [rank, proxy] : proxies) {
    options.streams[rank] = {proxy.fds[0].get(), proxy.fds[1].get(), proxy.fds[2].get()};
    if (proxy.pmi) options.pmi[rank] = proxy.pmi.get();
    if (!proxy.cpus.empty()) options.task_cpus[rank] = proxy.cpus;
  }
  options.like = proxies.begin()->second.pid;
  const std::string places = read_proc(options.like, "cgroup");
  for (const auto& [rank, proxy] : proxies)
    if (read_proc(proxy.pid, "cgroup") != places) options.task_places[rank] = proxy.pid;
  if (!options.task_places.empty()) options.task_places[proxies.begin()->first] = options.like;
  std::optional<Error> first;
  std::vector<std::string> passed_over;
  const std::string step = fmt::format("slurm-icp: step {}.{}", facts.job, protocol::step_name(facts.step));
  for (const std::string& what : plan.damaged)
    passed_over.push_back(fmt::format("{}: {} cannot be restarted: {}", step, plan.image, what));
  for (const uint32_t version : plan.versions) {
    try {
      const CapsulePart part = part_of_tasks(plan.image, version, options.identity, proxies, facts.launched);
      options.node = part.name;
      options.version = version;
      if (together.chosen) choose_together(together, part, options);
      RestoredCapsule capsule = RestoredCapsule::restore(options);
      std::string line = fmt::format("{} {}", step, describe(capsule, plan.image, options.identity));
      spdlog::info("{}", line.substr(11));
      return {std::move(capsule), std::move(passed_over), std::move(line)};
    } catch (const Error& error) {
      spdlog::warn("version {} of {}: {}", version, plan.image, error.what());
      // An older version is better than none, and which one it was is said. Who named a version wants that one.
      bool again = !plan.one_version && older_may_do(error) && version != plan.versions.back();
      if (together.failed) again = together.failed(error, again, together.attempt);
      if (!first) first = error;
      if (!again) throw *first;
      together.attempt++;
      passed_over.push_back(
          fmt::format("{}: version {} of {} cannot be restarted: {}", step, version, plan.image, error.what()));
    }
  }
  throw_error(ErrorKind::kImage, "{} holds no version", plan.image);
}

void signal_tree(const TaskRoot& root, int signal) {
  std::vector<ProcessRef> found = find_processes({root.pid});
  if (found.empty() || (root.start_time != 0 && found.front().start_time != root.start_time)) return;
  for (auto process = found.rbegin(); process != found.rend(); ++process)
    signal_process(process->pid, process->start_time, signal);
}

}  // namespace icp
