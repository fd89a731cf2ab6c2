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
#include "coordinator/icpstepd/network_exchange.h"
#include "coordinator/icpstepd/versions.h"
#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

// The capsule that holds the tasks of this agent: each needs one of the new step to lend it its streams and its exit
// status.
CapsulePart part_of_tasks(const std::string& image, uint32_t version, const Identity& identity,
                          const std::map<int, ProxyStreams>& proxies) {
  std::set<int> ranks;
  for (const auto& [rank, proxy] : proxies) ranks.insert(rank);
  std::vector<CapsulePart> here = capsules_here(capsules_of(image, version, identity, ranks), image, ranks);
  if (here.size() != 1) {
    throw_error(ErrorKind::kImage, "version {} of {} has another layout of tasks than the latest one", version, image);
  }
  return std::move(here[0]);
}

// Agrees with the other capsules of the step on the version and on addresses.
void choose_together(const RestartTogether& together, const CapsulePart& part, RestoreOptions& options) {
  net::RestartReady ready;
  ready.set_phase(1);
  ready.set_version(options.version);
  *ready.mutable_addresses() = moved_addresses(part.state);
  *ready.mutable_ends() = ends_to_restore(part.state);
  const net::RestartGo go = together.chosen(ready);
  options.network.addresses = address_texts(go.addresses(), ready.addresses(), part.state);
  options.network.connections = new_connections(ready.ends(), go.ends());
}

std::string describe(const RestoredCapsule& capsule, const std::string& image) {
  const pb::Manifest& manifest = capsule.manifest();
  const std::time_t taken = static_cast<std::time_t>(manifest.taken_unix_ns() / 1'000'000'000);
  constexpr uint64_t kPage = 4096;
  return fmt::format("restarted from version {} of {}, taken {:%Y-%m-%d %H:%M:%S}: {}", capsule.version(), image,
                     fmt::localtime(taken),
                     counted_bytes(manifest.stats().processes(), manifest.stats().pages_total() * kPage));
}

}  // namespace

RestartResult restore_step(const StartPlan& plan, const protocol::StepFacts& facts, const Config& config,
                           const std::map<int, ProxyStreams>& proxies, const RestartTogether& together) {
  RestoreOptions options;
  options.network.meet = together.meet;
  options.image_path = plan.image;
  options.identity = identity_of(facts);
  options.grown = config.grown_files;
  for (const auto& [rank, proxy] : proxies) {
    options.streams[rank] = {proxy.fds[0].get(), proxy.fds[1].get(), proxy.fds[2].get()};
    if (proxy.pmi) options.pmi[rank] = proxy.pmi.get();
  }
  options.like = proxies.begin()->second.pid;
  std::optional<Error> first;
  for (const uint32_t version : plan.versions) {
    try {
      const CapsulePart part = part_of_tasks(plan.image, version, options.identity, proxies);
      options.node = part.name;
      options.version = version;
      if (together.chosen) choose_together(together, part, options);
      RestoredCapsule capsule = RestoredCapsule::restore(options);
      std::string line = fmt::format("slurm-icp: step {}.{} {}", facts.job, protocol::step_name(facts.step),
                                     describe(capsule, plan.image));
      spdlog::info("{}", line.substr(11));
      return {std::move(capsule), std::move(line)};
    } catch (const Error& error) {
      spdlog::warn("version {} of {}: {}", version, plan.image, error.what());
      // After a requeue an older version is better than none. Who named an image wants that one, or to know; and
      // several nodes would have to choose another one together.
      if (!facts.restart_dir.empty() || together.chosen || error.kind() != ErrorKind::kImage) throw;
      if (!first) first = error;
    }
  }
  throw *first;
}

void signal_tree(pid_t root, int signal) {
  try {
    for (const pid_t child : read_children(root)) signal_tree(child, signal);
  } catch (const Error&) {
    // It has ended; so will have its children's link to it.
  }
  ::kill(root, signal);
}

}  // namespace icp
