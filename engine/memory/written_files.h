// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "engine/image/image.pb.h"
#include "engine/memory/page_ranges.h"

namespace icp {

// Files that the capsule's processes have mapped for writing, or that are saved whole: their content is in the image,
// and their time at a restart says nothing. Thread-safe. The capsule must outlive it.
class WrittenFiles {
 public:
  explicit WrittenFiles(const pb::Capsule& capsule);
  // The object of a file if all of it that the mapping shows is in the image: who only reads there maps the object.
  // Null: it is a file like any other.
  const pb::MemoryObject* find(const pb::Mapping& mapping) const;

 private:
  struct File {
    const pb::MemoryObject* object = nullptr;
    std::vector<Range> ranges;  // normalised
  };
  std::map<std::pair<uint64_t, uint64_t>, File> files_;  // by device and inode at the checkpoint
};

}  // namespace icp
