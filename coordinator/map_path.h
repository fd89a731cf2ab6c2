// SPDX-License-Identifier: GPL-2.0-or-later
// The pairs of --map-path. The SPANK plugin uses them too, hence: nothing to link.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "engine/base/path_map.h"

namespace icp {

inline constexpr const char* kMapPathGrammar =
    "OLD=NEW[:OLD=NEW...], where OLD and NEW are absolute paths without \"=\", \":\" or line breaks";

// "/a=/b:/c/d=/e", with or without slashes at the ends of paths; nothing for what is no such list, or for an OLD given
// twice. An empty text is an empty list.
inline std::optional<PathMap> parse_map_path(std::string_view text) {
  const auto path_of = [](std::string_view path) -> std::optional<std::string> {
    if (path.empty() || path[0] != '/' || path.find_first_of(std::string_view("=\0\n\r", 4)) != std::string_view::npos)
      return std::nullopt;
    while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
    return std::string(path);
  };
  PathMap pairs;
  if (text.empty()) return pairs;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(':', begin), text.size());
    const std::string_view pair = text.substr(begin, end - begin);
    const size_t sign = pair.find('=');
    if (sign == std::string_view::npos) return std::nullopt;
    auto old_path = path_of(pair.substr(0, sign)), new_path = path_of(pair.substr(sign + 1));
    if (!old_path || !new_path) return std::nullopt;
    for (const auto& [known, other] : pairs)
      if (known == *old_path) return std::nullopt;
    pairs.emplace_back(std::move(*old_path), std::move(*new_path));
    begin = end + 1;
  }
  return pairs;
}

}  // namespace icp
