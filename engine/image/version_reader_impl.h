// SPDX-License-Identifier: GPL-2.0-or-later
// Inside of VersionReader; ImageDir::read_version() makes it.
#pragma once

#include <algorithm>
#include <memory>
#include <string>

#include "engine/image/image_dir.h"
#include "engine/image/image_files.h"
#include "engine/image/image_root.h"

namespace icp {

struct VersionReader::Impl {
  std::shared_ptr<const ImageRoot> root;
  uint32_t version = 0;
  UniqueFd dir;   // DIR/v000007/<node>
  UniqueFd lock;  // keeps files from being removed
  pb::Manifest manifest;

  std::string path_of(uint32_t in, std::string_view name) const {
    return fmt::format("{}/{}", root->node_path(in), name);
  }
  std::string own_path(std::string_view name) const { return path_of(version, name); }
  UniqueFd open_own(const std::string& name) const {
    return open_regular_file(dir.get(), name, own_path(name), root->identity);
  }
  bool needs(uint32_t other) const {
    return std::binary_search(manifest.needs().begin(), manifest.needs().end(), other);
  }
  const pb::FileEntry* entry(std::string_view name) const {
    for (const pb::FileEntry& file : manifest.files()) {
      if (file.name() == name) return &file;
    }
    return nullptr;
  }
  void check_numbers() const;
  void check_needs() const;
  void check_nodes() const;
  void check_files() const;
};

}  // namespace icp
