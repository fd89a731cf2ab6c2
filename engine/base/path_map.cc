// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/path_map.h"

#include "engine/base/file_names.h"

namespace icp {

std::string mapped_path(const PathMap& map, const std::string& path) {
  const std::pair<std::string, std::string>* longest = nullptr;
  for (const auto& pair : map)
    if (is_within(path, pair.first) && (longest == nullptr || pair.first.size() > longest->first.size()))
      longest = &pair;
  return longest == nullptr ? path : moved_path(path, longest->first, longest->second);
}

}  // namespace icp
