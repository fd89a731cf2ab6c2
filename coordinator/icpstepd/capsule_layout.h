// SPDX-License-Identifier: GPL-2.0-or-later
// The capsules of a version, and which of them the tasks of this node stand for. A capsule is restored whole, by the
// node that has its tasks; a node may have those of several.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "engine/base/identity.h"
#include "engine/image/image.pb.h"

namespace icp {

struct CapsulePart {
  std::string name;     // in the image: the node on which it began
  std::string host;     // on which the version was taken
  std::set<int> ranks;  // of its tasks
  std::set<int> ended;  // of those that had ended before the version
  pb::Capsule state;    // empty for those that have no task of the node
};

// All capsules of a version, for a node with the tasks `ranks`; of the script's so many-th launched step, where the
// version has those. Throws Error.
std::vector<CapsulePart> capsules_of(const std::string& image, uint32_t version, const Identity& identity,
                                     const std::set<int>& ranks, uint32_t launched);
// Leaves of `versions` those that have the same capsules as the first one, those of launched steps included; returns
// how many that are. Throws Error.
size_t keep_versions_of_same_capsules(const std::string& image, const Identity& identity,
                                      std::vector<uint32_t>& versions);

// Those of `all` whose tasks are those of this node, by rank, and with them what tasks of theirs had ended and have one
// of this node to end again. Throws kUsage, saying how tasks are laid out in the image
// and what would fit, when a task of this node has none, or some tasks of a capsule are elsewhere.
std::vector<CapsulePart> capsules_here(std::vector<CapsulePart> all, const std::string& image,
                                       const std::set<int>& ranks);

}  // namespace icp
