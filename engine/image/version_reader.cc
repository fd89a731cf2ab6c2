// SPDX-License-Identifier: GPL-2.0-or-later
#include <algorithm>
#include <set>

#include "engine/base/error.h"
#include "engine/image/image_dir.h"
#include "engine/image/image_files.h"
#include "engine/image/image_layout.h"
#include "engine/image/image_lock.h"
#include "engine/image/image_root.h"
#include "engine/image/sealed_file.h"
#include "engine/image/version_reader_impl.h"

namespace icp {

void VersionReader::Impl::check_numbers() const {
  const std::string path = own_path(kManifestName);
  if (manifest.format() < kImageFormat || manifest.format() > kDirectoriesFormat) {
    throw_error(ErrorKind::kImage, "{} has image format {}, this program reads formats {} to {}", path,
                manifest.format(), kImageFormat, kDirectoriesFormat);
  }
  if (manifest.version() != version) {
    throw_error(ErrorKind::kImage, "{} is the manifest of version {}, not {}", path, manifest.version(), version);
  }
  const uint64_t page_size = manifest.host().page_size();
  if (page_size != 0 && page_size != kPageBytes) {
    throw_error(ErrorKind::kImage, "{} has pages of {} bytes, this program has pages of {}", path, page_size,
                kPageBytes);
  }
}

void VersionReader::Impl::check_needs() const {
  uint32_t last = 0;
  for (const uint32_t needed : manifest.needs()) {
    if (needed <= last || needed > version) {
      throw_error(ErrorKind::kImage, "{} names version {} after version {} among those it needs",
                  own_path(kManifestName), needed, last);
    }
    last = needed;
    if (needed != version && !root->has_node(needed)) {
      throw_error(ErrorKind::kImage, "version {} needs version {}, and {} is missing", version, needed,
                  root->node_path(needed));
    }
  }
  if (last != version) {
    throw_error(ErrorKind::kImage, "{} does not name itself among the versions it needs", own_path(kManifestName));
  }
}

// A version of several nodes is one only when all of them have committed it: some hold a later state than the others
// do.
void VersionReader::Impl::check_nodes() const {
  for (const std::string& node : manifest.job().nodes()) {
    if (!is_safe_name(node)) {
      throw_error(ErrorKind::kImage, "{} names a node with an impossible name", own_path(kManifestName));
    }
    if (!root->has_version(version, node)) {
      throw_error(ErrorKind::kImage, "version {} of {} is not whole: node {} has not committed it", version, root->path,
                  node);
    }
  }
}

void VersionReader::Impl::check_files() const {
  std::set<std::string_view> seen;
  for (const pb::FileEntry& file : manifest.files()) {
    if (!is_safe_name(file.name())) {
      throw_error(ErrorKind::kImage, "{} names a file with an impossible name", own_path(kManifestName));
    }
    if (!seen.insert(file.name()).second) {
      throw_error(ErrorKind::kImage, "{} names the file {} twice", own_path(kManifestName), file.name());
    }
    const UniqueFd fd = open_own(file.name());
    const uint64_t size = file_size(fd.get(), own_path(file.name()));
    if (size != file.bytes()) {
      throw_error(ErrorKind::kImage, "{} has {} bytes instead of {}", own_path(file.name()), size, file.bytes());
    }
  }
}

VersionReader ImageDir::open_version(uint32_t version) const {
  const FsIdentity guard(root_->identity);
  return read_version(version, lock_for_reading(*root_));
}

// The caller holds the FsIdentity.
VersionReader ImageDir::read_version(uint32_t version, UniqueFd lock, bool whole) const {
  if (version == 0 || version > kMaxVersion) throw_error(ErrorKind::kUsage, "there is no version {}", version);
  auto impl = std::make_shared<VersionReader::Impl>();
  impl->root = root_;
  impl->version = version;
  impl->lock = std::move(lock);
  if (!root_->has_version(version)) {
    throw_error(ErrorKind::kImage, "{} has no version {} of {}", root_->path, version, root_->node);
  }
  impl->dir = root_->open_node_dir(version);
  const std::string name(kManifestName);
  const UniqueFd fd = impl->open_own(name);
  unseal(fd.get(), name, kMaxManifestBytes, impl->own_path(name), impl->manifest);
  impl->check_numbers();
  impl->check_needs();
  if (whole) impl->check_nodes();
  impl->check_files();
  return VersionReader(std::move(impl));
}

VersionReader::VersionReader(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
VersionReader::VersionReader(const VersionReader&) = default;
VersionReader::VersionReader(VersionReader&&) noexcept = default;
VersionReader::~VersionReader() = default;

uint32_t VersionReader::version() const { return impl_->version; }
const pb::Manifest& VersionReader::manifest() const { return impl_->manifest; }
bool VersionReader::needs(uint32_t version) const { return impl_->needs(version); }

std::string VersionReader::file_path(uint32_t version, const std::string& name) const {
  return impl_->path_of(version, name);
}

pb::Capsule VersionReader::read_state() const {
  pb::Capsule capsule;
  read_sealed(std::string(kStateName), capsule);
  return capsule;
}

bool VersionReader::has_file(const std::string& name) const { return impl_->entry(name) != nullptr; }

void VersionReader::read_sealed(const std::string& name, google::protobuf::Message& message) const {
  const std::string path = impl_->own_path(name);
  const pb::FileEntry* entry = impl_->entry(name);
  if (entry == nullptr) throw_error(ErrorKind::kImage, "{} is not in the version's manifest", path);
  UniqueFd fd;
  {
    const FsIdentity guard(impl_->root->identity);
    fd = impl_->open_own(name);
  }
  uint64_t xxh3 = 0;
  unseal(fd.get(), name, kMaxStateBytes, path, message, &xxh3);
  // A whole state file of another version has a right checksum of its own.
  if (xxh3 != entry->xxh3()) throw_error(ErrorKind::kImage, "{} is not the file that the manifest describes", path);
}

UniqueFd VersionReader::open_file(uint32_t version, const std::string& name) const {
  if (!is_safe_name(name)) {
    throw_error(ErrorKind::kImage, "version {} refers to a file with an impossible name", impl_->version);
  }
  if (!impl_->needs(version)) {
    throw_error(ErrorKind::kImage, "{} refers to version {}, which its manifest does not name",
                impl_->root->node_path(impl_->version), version);
  }
  const FsIdentity guard(impl_->root->identity);
  if (version == impl_->version) return impl_->open_own(name);
  const UniqueFd dir = impl_->root->open_node_dir(version);
  return open_regular_file(dir.get(), name, impl_->path_of(version, name), impl_->root->identity);
}

}  // namespace icp
