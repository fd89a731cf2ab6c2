// SPDX-License-Identifier: GPL-2.0-or-later
// Taking versions away, for ImageDir::prune() and the end of a compaction.
#pragma once

#include "engine/image/image_dir.h"

namespace icp {

struct KeptVersion {
  uint32_t version = 0;
  pb::Manifest manifest;
  bool complete = true;  // all of its nodes have committed it
};

// `readable`: all versions of the node with whole manifests, ascending. The caller holds FsIdentity, write lock and
// removal lock (image_lock.h).
ChainResult prune_versions(const ImageRoot& root, const std::vector<KeptVersion>& readable, uint32_t keep);

}  // namespace icp
