// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/het_group.h"

#include <algorithm>
#include <fstream>
#include <iterator>

namespace icp::spank {

std::vector<std::string> component_values(const std::vector<std::string>& words, std::string_view option,
                                          std::string_view last) {
  const std::string name = "--" + std::string(option);
  std::vector<std::string> values(1);
  std::string found;
  for (size_t i = 1; i < words.size(); i++) {
    if (words[i] == ":") values.emplace_back();
    if (words[i].starts_with(name + "=")) found = values.back() = words[i].substr(name.size() + 1);
    if (words[i] == name && i + 1 < words.size()) found = values.back() = words[i + 1];
  }
  const auto says = [](const std::string& value) { return !value.empty(); };
  if (std::count_if(values.begin(), values.end(), says) < 2 || found != last) return {};
  return values;
}

std::vector<std::string> own_command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::vector<std::string> words;
  for (size_t begin = 0; begin < all.size();) {
    const size_t end = std::min(all.find('\0', begin), all.size());
    words.push_back(all.substr(begin, end - begin));
    begin = end + 1;
  }
  return words;
}

std::optional<int> het_group(spank_t handle, uint32_t job) {
  constexpr int kMostGroups = 128;  // MAX_HET_JOB_COMPS
  if (job_env(handle, "SLURM_HET_SIZE").empty()) return std::nullopt;
  for (int group = 0; group < kMostGroups; group++) {
    std::string text = job_env(handle, group_variable("SLURM_JOB_ID", group).c_str());
    // Steps of srun alone, without sbatch or salloc, have the older name.
    if (text.empty()) text = job_env(handle, ("SLURM_JOB_ID_PACK_GROUP_" + std::to_string(group)).c_str());
    if (text.empty()) return std::nullopt;
    if (text == std::to_string(job)) return group;
  }
  return std::nullopt;
}

std::string group_variable(std::string_view name, int group) {
  return std::string(name) + "_HET_GROUP_" + std::to_string(group);
}

}  // namespace icp::spank
