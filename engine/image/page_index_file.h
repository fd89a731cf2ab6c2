// SPDX-License-Identifier: GPL-2.0-or-later
// <store>.<version>.idx: the tables of a page index that changed in one version.
//
//   header   32 bytes, tables (page_index_codec.h) children before parents, trailer 48 bytes
//
// The trailer points at the root table, in this file or, when nothing changed, in that of an older version. Tables
// name their children by version, offset and length: a version's index is complete without a chain to walk.
#pragma once

#include <cstdint>
#include <string>

#include "engine/image/image_dir.h"
#include "engine/image/page_store.h"

namespace icp {

class PageIndexFile {
 public:
  // Writes the tables of `index` that changed since they were last stored, and marks them as stored. After an
  // exception the index is of no use any more.
  static void write(PageIndex& index, VersionWriter& version, const std::string& store);
  // Loads the index of `store` as of the version opened. kImage names file and offset of what is wrong.
  static PageIndex load(const VersionReader& version, const std::string& store);
  // Whether the index refers to `version` or a later one: it then comes from a version that was never committed.
  static bool refers_to_or_after(const PageIndex& index, uint32_t version);
};

}  // namespace icp
