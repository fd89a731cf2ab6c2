// SPDX-License-Identifier: GPL-2.0-or-later
// Two passes, so that a crash between any two system calls leaves every listed version whole:
//  1. The manifest of each version that goes is renamed, which makes it a mere store of files, and that is flushed.
//  2. Files in such stores that no remaining version names are removed, and the directories that hold nothing any more.
// What a crash leaves of the second pass, the next prune does.
#include "engine/image/image_prune.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "engine/base/error.h"
#include "engine/image/image_files.h"
#include "engine/image/image_layout.h"
#include "engine/image/image_lock.h"
#include "engine/image/image_root.h"

namespace icp {
namespace {

using FileSet = std::set<std::pair<uint32_t, std::string>>;

void name_files(const pb::Manifest& manifest, FileSet& named) {
  for (const pb::StoreFiles& store : manifest.stores()) {
    for (const uint32_t version : store.page_files()) named.emplace(version, page_file_name(store.store(), version));
    for (const uint32_t version : store.index_files()) named.emplace(version, index_file_name(store.store(), version));
  }
}

void demote(const ImageRoot& root, uint32_t version) {
  const UniqueFd dir = root.open_node_dir(version);
  const std::string from(kManifestName), to(kPrunedName);
  if (::renameat(dir.get(), from.c_str(), dir.get(), to.c_str()) != 0) {
    throw_errno("cannot rename {}/{}", root.node_path(version), from);
  }
  flush_to_disk(dir.get(), root.node_path(version));
}

// Removes what nobody names from a pruned version; then, if nothing is left, the version's directory of this node.
uint64_t collect_garbage(const ImageRoot& root, uint32_t version, const FileSet& named) {
  uint64_t freed = 0;
  bool left = false;
  {
    const UniqueFd dir = root.open_node_dir(version);
    for (const std::string& name : list_dir(dir.get(), root.node_path(version))) {
      if (name == kPrunedName) continue;
      if (named.contains({version, name})) {
        left = true;
        continue;
      }
      struct stat info {};
      if (::fstatat(dir.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) continue;
      if (::unlinkat(dir.get(), name.c_str(), 0) != 0)
        throw_errno("cannot remove {}/{}", root.node_path(version), name);
      freed += static_cast<uint64_t>(info.st_size);
    }
  }
  if (left) return freed;
  // Out of the way in one step: without its last file it would look like a damaged version.
  const std::string gone = temporary_dir_name(version, root.node);
  {
    const UniqueFd parent = root.open_version_dir(version);
    if (::renameat(parent.get(), root.node.c_str(), root.fd.get(), gone.c_str()) != 0) {
      throw_errno("cannot rename {}", root.node_path(version));
    }
  }
  remove_flat_dir(root.fd.get(), gone);
  ::unlinkat(root.fd.get(), version_dir_name(version).c_str(), AT_REMOVEDIR);  // other nodes may be in it
  return freed;
}

// What interrupted versions, prunings and compactions of this node left. Nobody makes a version now; a compaction at
// work has its directory locked.
void remove_leftovers(const ImageRoot& root) {
  for (const std::string& name : list_dir(root.fd.get(), root.path)) {
    const bool fold = name == fold_dir_name(root.node);
    if (!fold && !is_temporary_dir_name(name, root.node)) continue;
    const UniqueFd dir(::openat(root.fd.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (fold && dir && ::flock(dir.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) continue;
    remove_flat_dir(root.fd.get(), name);
  }
}

// A crash may have left a version's directory with no node in it.
bool is_empty_dir(const ImageRoot& root, uint32_t version) {
  const UniqueFd dir = root.open_version_dir(version);
  return list_dir(dir.get(), root.version_path(version)).empty();
}

}  // namespace

ChainResult prune_versions(const ImageRoot& root, const std::vector<KeptVersion>& readable, uint32_t keep) {
  ChainResult result;
  remove_leftovers(root);
  if (readable.empty()) return result;
  // Those before the oldest one that counts.
  size_t going = readable.size();
  for (uint32_t left = std::max<uint32_t>(keep, 1); left > 0 && going > 0;) {
    if (readable[--going].complete) --left;
  }
  FileSet named;
  for (size_t i = going; i < readable.size(); ++i) name_files(readable[i].manifest, named);
  for (size_t i = 0; i < going; ++i) {
    demote(root, readable[i].version);
    result.removed.push_back(readable[i].version);
  }
  const uint32_t newest = readable.back().version;
  for (const uint32_t version : root.version_numbers(false)) {
    if (version >= newest) continue;
    if (root.has_node(version)) {
      if (!root.has_version(version)) result.bytes_freed += collect_garbage(root, version, named);
    } else if (is_empty_dir(root, version)) {
      ::unlinkat(root.fd.get(), version_dir_name(version).c_str(), AT_REMOVEDIR);
    }
  }
  flush_to_disk(root.fd.get(), root.path);
  return result;
}

ChainResult ImageDir::prune(uint32_t keep) const {
  const FsIdentity guard(root_->identity);
  const UniqueFd writing = lock_for_writing(*root_);
  const UniqueFd removing = lock_for_removal(*root_);
  return prune_versions(*root_, readable_versions(), keep);
}

// The caller holds the FsIdentity and a lock that keeps the files where they are.
std::vector<KeptVersion> ImageDir::readable_versions() const {
  std::vector<KeptVersion> readable;
  for (const uint32_t version : root_->version_numbers(true)) {
    try {
      KeptVersion found{version, read_version(version, {}, false).manifest(), true};
      for (const std::string& node : found.manifest.job().nodes()) {
        found.complete = found.complete && root_->has_version(version, node);
      }
      readable.push_back(std::move(found));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kImage) throw;
    }
  }
  return readable;
}

}  // namespace icp
