// SPDX-License-Identifier: GPL-2.0-or-later
// The words of --checkpoint-files. The SPANK plugin uses them too, hence: nothing to link.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace icp {

inline constexpr const char* kCheckpointFilesGrammar =
    "none, open, or dir:PATH, or open and several dir:PATH with commas between, where PATH is absolute and has no "
    "comma "
    "or line break";

struct CheckpointFilesChoice {
  bool open = false;                     // content of files that are open for writing
  std::vector<std::string> directories;  // kept whole
};

// "open,dir:/a,dir:/b"; nothing for what is no such list.
inline std::optional<CheckpointFilesChoice> parse_checkpoint_files(std::string_view text) {
  CheckpointFilesChoice choice;
  if (text == "none") return choice;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    std::string_view word = text.substr(begin, end - begin);
    begin = end + 1;
    if (word == "open") {
      choice.open = true;
      continue;
    }
    constexpr std::string_view kDirectory = "dir:/";
    if (!word.starts_with(kDirectory) || word.find_first_of(std::string_view("\0\n\r", 3)) != word.npos)
      return std::nullopt;
    word.remove_prefix(kDirectory.size() - 1);
    while (word.size() > 1 && word.back() == '/') word.remove_suffix(1);
    choice.directories.emplace_back(word);
  }
  return choice;
}

}  // namespace icp
