// SPDX-License-Identifier: GPL-2.0-or-later
// Inside of VersionWriter; ImageDir::begin_version() makes it.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>

#include "engine/image/image_dir.h"
#include "engine/image/image_root.h"

namespace icp {

struct VersionWriter::Impl {
  struct File {
    uint64_t bytes = 0;
    uint64_t xxh3 = 0;
    bool recorded = false;
  };

  std::shared_ptr<const ImageRoot> root;
  uint32_t version = 0;
  std::string temporary;  // name of the directory below the image's
  UniqueFd dir;           // that directory, locked
  UniqueFd write_lock;    // image_lock.h
  std::map<std::string, File> files;
  std::set<uint32_t> needs;
  std::map<std::string, pb::StoreFiles> stores;
  std::vector<uint32_t> folded_from;  // of a compaction
  Compression compression = Compression::kNone;
  bool in_place = false;  // renamed: nothing to clean up any more

  ~Impl();
  std::string path_of(const std::string& name) const;
  UniqueFd create(const std::string& name);
  // XXH3-64 of the whole file.
  uint64_t write_sealed(const std::string& name, const std::string& payload, uint32_t format = kImageFormat);
  void flush_files() const;
  void move_into_place();
};

}  // namespace icp
