// SPDX-License-Identifier: GPL-2.0-or-later
// What an ImageDir and the versions opened from it share.
#pragma once

#include <string>
#include <vector>

#include "engine/base/identity.h"
#include "engine/base/unique_fd.h"

namespace icp {

// Immutable after it was opened, hence safe to share between threads. Members that open something expect the caller
// to hold the FsIdentity.
struct ImageRoot {
  UniqueFd fd;
  std::string path;
  Identity identity;
  std::string node;

  // "DIR/v000007" and "DIR/v000007/<node>".
  std::string version_path(uint32_t version) const;
  std::string node_path(uint32_t version) const;
  // DIR/v000007 and DIR/v000007/<node>, each checked for owner and mode.
  UniqueFd open_version_dir(uint32_t version) const;
  UniqueFd open_node_dir(uint32_t version) const;
  // Numbers of all version directories, ascending; with_node: only those that hold this node, pruned ones left out.
  std::vector<uint32_t> version_numbers(bool with_node) const;
  // Whether files of any node are there.
  bool has_dir(uint32_t version) const;
  // Whether files of this node are there, be it of a pruned version.
  bool has_node(uint32_t version) const { return has_node(version, node); }
  bool has_node(uint32_t version, const std::string& other) const;
  // Whether it is a version of this node: not pruned.
  bool has_version(uint32_t version) const { return has_version(version, node); }
  bool has_version(uint32_t version, const std::string& other) const;
};

}  // namespace icp
