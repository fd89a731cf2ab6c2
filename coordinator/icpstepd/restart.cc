// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/restart.h"

#include <fmt/chrono.h>
#include <signal.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <ctime>
#include <set>

#include "coordinator/icpstepd/cgroups.h"
#include "coordinator/icpstepd/network_exchange.h"
#include "coordinator/icpstepd/versions.h"
#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

std::string list_of(const std::set<int>& ranks) { return fmt::format("{}", fmt::join(ranks, ",")); }

// The node whose capsule holds the tasks of this node of the step: each needs one of the new step to lend it its
// streams and its exit status.
std::string node_of_tasks(const std::string& image, uint32_t version, const Identity& identity,
                          const std::map<int, ProxyStreams>& proxies, pb::Capsule& capsule) {
  std::set<int> wanted;
  for (const auto& [rank, proxy] : proxies) wanted.insert(rank);
  const std::vector<std::string> nodes = ImageDir::nodes_of(image, identity);
  std::string layout;
  size_t tasks = 0, parts = 0;
  for (const std::string& node : nodes) {
    const ImageDir dir = ImageDir::open(image, identity, node);
    const std::vector<VersionInfo> versions = dir.versions();
    const bool has = std::any_of(versions.begin(), versions.end(),
                                 [version](const VersionInfo& info) { return info.version == version; });
    if (!has) continue;
    capsule = dir.open_version(version).read_state();
    std::set<int> ranks;
    for (const pb::Task& task : capsule.tasks()) ranks.insert(task.rank());
    if (ranks == wanted) return node;
    tasks += ranks.size();
    parts++;
    layout += fmt::format("{}{} on {}", layout.empty() ? "" : ", ", list_of(ranks), node);
  }
  if (parts == 1) {
    throw_error(ErrorKind::kUsage, "{} holds {} task{}, this step has {}; start it with srun -n{}", image, tasks,
                tasks == 1 ? "" : "s", proxies.size(), tasks);
  }
  throw_error(ErrorKind::kUsage,
              "{} holds tasks {}; here are tasks {}: start it with srun -N{} -n{} and the same distribution of tasks",
              image, layout, list_of(wanted), parts, tasks);
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
  const pid_t like = proxies.begin()->second.pid;
  options.join = [like](pid_t init) { join_cgroups(init, like); };
  std::optional<Error> first;
  for (const uint32_t version : plan.versions) {
    try {
      pb::Capsule state;
      options.node = node_of_tasks(plan.image, version, options.identity, proxies, state);
      options.version = version;
      if (together.chosen) {
        options.network.addresses = address_texts(together.chosen(version, moved_addresses(state)));
      }
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
