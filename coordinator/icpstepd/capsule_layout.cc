// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/capsule_layout.h"

#include <algorithm>
#include <iterator>

#include "engine/base/error.h"
#include "engine/image/image_dir.h"

namespace icp {
namespace {

// "0-3,7": ranks as Slurm writes them.
std::string list_of(const std::set<int>& ranks) {
  std::string text;
  for (auto at = ranks.begin(); at != ranks.end();) {
    const int first = *at;
    int last = first;
    while (++at != ranks.end() && *at == last + 1) last = *at;
    text += fmt::format("{}{}", text.empty() ? "" : ",", first);
    if (last != first) text += fmt::format("-{}", last);
  }
  return text;
}

[[noreturn]] void refuse(const std::vector<CapsulePart>& all, const std::string& image, const std::set<int>& ranks) {
  size_t tasks = 0;
  std::string layout;
  constexpr size_t kMostNamed = 8;
  for (size_t i = 0; i < all.size(); i++) {
    tasks += all[i].ranks.size();
    if (i < kMostNamed) layout += fmt::format("{}{} on {}", i == 0 ? "" : ", ", list_of(all[i].ranks), all[i].name);
    if (i == kMostNamed) layout += ", ...";
  }
  if (all.size() == 1) {
    throw_error(ErrorKind::kUsage, "{} holds {} task{}, this step has {}; start it with srun -n{}", image, tasks,
                tasks == 1 ? "" : "s", ranks.size(), tasks);
  }
  throw_error(ErrorKind::kUsage,
              "{} holds tasks {}; a node here has tasks {}: what was on one node must come to one node again; start it "
              "with srun -N{} -n{} and the same distribution of tasks, or so that a node gets all tasks of several",
              image, layout, list_of(ranks), all.size(), tasks);
}

}  // namespace

std::vector<CapsulePart> capsules_of(const std::string& image, uint32_t version, const Identity& identity,
                                     const std::set<int>& ranks, uint32_t launched) {
  std::vector<CapsulePart> parts;
  for (const std::string& node : ImageDir::nodes_of(image, identity)) {
    const ImageDir dir = ImageDir::open(image, identity, node);
    if (!dir.has_version(version)) continue;
    const VersionReader reader = dir.open_version(version);
    if (reader.manifest().job().launched() != launched) continue;
    CapsulePart& part = parts.emplace_back();
    part.name = node;
    part.host = reader.manifest().host().node();
    part.state = reader.read_state();
    for (const pb::Task& task : part.state.tasks()) part.ranks.insert(task.rank());
    for (const pb::TaskEnd& end : part.state.ended()) part.ended.insert(end.rank());
    const auto here = [&ranks](int rank) { return ranks.contains(rank); };
    if (std::none_of(part.ranks.begin(), part.ranks.end(), here)) part.state.Clear();
  }
  return parts;
}

size_t keep_versions_of_same_capsules(const std::string& image, const Identity& identity,
                                      std::vector<uint32_t>& versions) {
  size_t count = 0;
  const uint32_t first = versions.at(0);
  for (const std::string& node : ImageDir::nodes_of(image, identity)) {
    const ImageDir dir = ImageDir::open(image, identity, node);
    const bool wanted = dir.has_version(first);
    count += wanted ? 1 : 0;
    std::erase_if(versions, [&](uint32_t version) { return dir.has_version(version) != wanted; });
  }
  return count;
}

std::vector<CapsulePart> capsules_here(std::vector<CapsulePart> all, const std::string& image,
                                       const std::set<int>& ranks) {
  std::set<int> found;
  const auto is_here = [&ranks](const CapsulePart& part) {
    return !part.ranks.empty() && std::includes(ranks.begin(), ranks.end(), part.ranks.begin(), part.ranks.end());
  };
  size_t tasks = 0;
  for (CapsulePart& part : all) {
    if (!is_here(part)) continue;
    // A task that had ended has a proxy where the step has as many tasks as at its beginning, and need not have one.
    std::set_intersection(part.ended.begin(), part.ended.end(), ranks.begin(), ranks.end(),
                          std::inserter(part.ranks, part.ranks.end()));
    tasks += part.ranks.size();
    found.insert(part.ranks.begin(), part.ranks.end());
  }
  if (found != ranks || tasks != ranks.size()) refuse(all, image, ranks);
  std::erase_if(all, [&](const CapsulePart& part) { return !is_here(part); });
  return all;
}

}  // namespace icp
