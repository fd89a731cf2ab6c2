// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/restart.h"

#include <fmt/chrono.h>
#include <signal.h>
#include <spdlog/spdlog.h>

#include <ctime>
#include <set>

#include "coordinator/icpstepd/cgroups.h"
#include "coordinator/icpstepd/versions.h"
#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

// The image says which ranks it holds; each needs a task of the new step to lend it its streams and its exit status.
void check_tasks(const std::string& image, uint32_t version, const Identity& identity,
                 const std::map<int, ProxyStreams>& proxies) {
  const pb::Capsule state = ImageDir::open(image, identity).open_version(version).read_state();
  std::set<int> ranks;
  for (const pb::Task& task : state.tasks()) ranks.insert(task.rank());
  bool equal = ranks.size() == proxies.size();
  for (const auto& [rank, proxy] : proxies) equal = equal && ranks.contains(rank);
  if (equal) return;
  throw_error(ErrorKind::kUsage, "{} holds {} task{}, this step has {}; start it with srun -n{}", image, ranks.size(),
              ranks.size() == 1 ? "" : "s", proxies.size(), ranks.size());
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
                           const std::map<int, ProxyStreams>& proxies) {
  RestoreOptions options;
  options.image_path = plan.image;
  options.identity = identity_of(facts);
  options.grown = config.grown_files;
  for (const auto& [rank, proxy] : proxies) {
    options.streams[rank] = {proxy.fds[0].get(), proxy.fds[1].get(), proxy.fds[2].get()};
  }
  const pid_t like = proxies.begin()->second.pid;
  options.join = [like](pid_t init) { join_cgroups(init, like); };
  std::optional<Error> first;
  for (const uint32_t version : plan.versions) {
    try {
      check_tasks(plan.image, version, options.identity, proxies);
      options.version = version;
      RestoredCapsule capsule = RestoredCapsule::restore(options);
      std::string line = fmt::format("slurm-icp: step {}.{} {}", facts.job, protocol::step_name(facts.step),
                                     describe(capsule, plan.image));
      spdlog::info("{}", line.substr(11));
      return {std::move(capsule), std::move(line)};
    } catch (const Error& error) {
      spdlog::warn("version {} of {}: {}", version, plan.image, error.what());
      // After a requeue an older version is better than none. Who named an image wants that one, or to know.
      if (!facts.restart_dir.empty() || error.kind() != ErrorKind::kImage) throw;
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
