// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/open_image.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "coordinator/icp/users.h"
#include "engine/base/error.h"

namespace icp {

namespace {

namespace fs = std::filesystem;

// v000007, but for what else a user may have put there.
bool is_version_name(const std::string& name) {
  return name.size() >= 7 && name[0] == 'v' && name.find_first_not_of("0123456789", 1) == std::string::npos;
}

bool has_versions(const fs::path& dir) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(dir, ignored))
    if (is_version_name(entry.path().filename().string())) return true;
  return false;
}

// Helps who named the directory above the image, or one of no image at all.
void check_is_image(const std::string& dir) {
  std::error_code error;
  fs::directory_iterator entries(dir, error);
  if (error)
    throw Error(ErrorKind::kSystem, fmt::format("cannot open {}: {}", dir, errno_text(error.value())), error.value());
  if (has_versions(dir)) return;
  std::vector<std::string> images;
  for (const auto& entry : entries)
    if (has_versions(entry.path())) images.push_back(entry.path().string());
  if (images.empty())
    throw Error(ErrorKind::kGone, fmt::format("there is no version in {}", dir), 0,
                "a version is there once icp run, watch or checkpoint, or a job's interval, has taken one");
  std::sort(images.begin(), images.end());
  const size_t more = images.size() > 10 ? images.size() - 10 : 0;
  images.resize(images.size() - more);
  throw Error(
      ErrorKind::kUsage, fmt::format("{} holds no versions itself, but directories that do", dir), 0,
      fmt::format("name one of them: {}{}", fmt::join(images, " "), more > 0 ? fmt::format(" and {} more", more) : ""));
}

}  // namespace

ImageDir open_image(const std::string& dir, const Identity& identity, const std::string& node) {
  take_rights_of(identity);
  check_is_image(dir);
  return ImageDir::open(dir, identity, node);
}

}  // namespace icp
