// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <stdio.h>  // renameat2()
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/error.h"
#include "engine/image/image_files.h"
#include "engine/image/image_layout.h"
#include "engine/image/image_lock.h"
#include "engine/image/sealed_file.h"
#include "engine/image/version_writer_impl.h"
#include "engine/image/wire_scan.h"

namespace icp {
namespace {

// Two processes that checkpoint into one image would remove each other's files. False when somebody else has the lock;
// file systems without locks on directories (some NFS) are let pass.
bool lock(int fd) { return ::flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK; }

// Directories that interrupted versions of this node left behind.
void remove_leftovers(const ImageRoot& root) {
  for (const std::string& name : list_dir(root.fd.get(), root.path)) {
    if (!is_temporary_dir_name(name, root.node)) continue;
    const UniqueFd dir(::openat(root.fd.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (dir && !lock(dir.get())) {
      throw Error(ErrorKind::kBusy, fmt::format("another process is writing a version into {}", root.path), 0,
                  "wait for it, or use another directory");
    }
    if (!remove_flat_dir(root.fd.get(), name)) throw_errno("cannot remove the leftover {}/{}", root.path, name);
  }
}

uint32_t next_number(const ImageRoot& root, uint32_t wanted) {
  const std::vector<uint32_t> numbers = root.version_numbers(wanted != 0);
  const uint32_t highest = numbers.empty() ? 0 : numbers.back();
  if (wanted != 0 && wanted <= highest) {
    throw_error(ErrorKind::kUsage, "version {} cannot be made, {} has version {} of {} already", wanted, root.path,
                highest, root.node);
  }
  const uint32_t number = wanted != 0 ? wanted : highest + 1;
  if (number > kMaxVersion) throw_error(ErrorKind::kUsage, "{} has no version number left", root.path);
  return number;
}

// rename() that does not replace an (empty) directory of that name.
int rename_new(int from_dir, const std::string& from, int to_dir, const std::string& to) {
  if (::renameat2(from_dir, from.c_str(), to_dir, to.c_str(), RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -1;
  struct stat info {};
  if (::fstatat(to_dir, to.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0) {
    errno = EEXIST;
    return -1;
  }
  return ::renameat(from_dir, from.c_str(), to_dir, to.c_str());
}

}  // namespace

UniqueFd ImageDir::claim() const {
  const FsIdentity as_user(root_->identity);
  return lock_for_session(*root_);
}

VersionWriter ImageDir::begin_version(uint32_t version) {
  const FsIdentity guard(root_->identity);
  remove_leftovers(*root_);
  auto impl = std::make_unique<VersionWriter::Impl>();
  impl->root = root_;
  impl->write_lock = lock_for_writing(*root_);
  impl->version = next_number(*root_, version);
  const std::string name = temporary_dir_name(impl->version, root_->node);
  const std::string path = fmt::format("{}/{}", root_->path, name);
  if (!make_private_dir(root_->fd.get(), name, path)) {
    throw_error(ErrorKind::kBusy, "another process is writing a version into {}", root_->path);
  }
  impl->temporary = name;
  impl->dir = open_private_dir(root_->fd.get(), name, path, root_->identity);
  if (!lock(impl->dir.get())) {
    impl->in_place = true;  // not ours to remove
    throw_error(ErrorKind::kBusy, "another process is writing a version into {}", root_->path);
  }
  return VersionWriter(std::move(impl));
}

VersionWriter::Impl::~Impl() {
  if (in_place || temporary.empty()) return;
  try {
    const FsIdentity guard(root->identity);
    remove_flat_dir(root->fd.get(), temporary);
  } catch (const Error&) {
    // Left over for the next begin_version().
  }
}

std::string VersionWriter::Impl::path_of(const std::string& name) const {
  return fmt::format("{}/{}/{}", root->path, temporary, name);
}

UniqueFd VersionWriter::Impl::create(const std::string& name) {
  if (!is_safe_name(name)) throw_error(ErrorKind::kUsage, "\"{}\" cannot be the name of a file of an image", name);
  UniqueFd fd = create_private_file(dir.get(), name, path_of(name));
  files[name] = {};
  return fd;
}

uint64_t VersionWriter::Impl::write_sealed(const std::string& name, const std::string& payload, uint32_t format) {
  const uint64_t limit = name == kManifestName ? kMaxManifestBytes : kMaxStateBytes;
  if (payload.size() > limit) {
    throw_error(ErrorKind::kRefused, "{} would have {} bytes, more than the {} that an image allows", path_of(name),
                payload.size(), limit);
  }
  const UniqueFd fd = create(name);
  const std::string whole = seal(name, payload, format);
  write_at(fd.get(), whole.data(), whole.size(), 0, path_of(name));
  files[name] = {whole.size(), hash_of(whole), true};
  return files[name].xxh3;
}

void VersionWriter::Impl::flush_files() const {
  for (const auto& [name, file] : files) {
    const UniqueFd fd = open_regular_file(dir.get(), name, path_of(name), root->identity);
    // Start all of them before waiting for the first; only a hint, the flush below finds errors.
    ::sync_file_range(fd.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
  }
  for (const auto& [name, file] : files) {
    const UniqueFd fd = open_regular_file(dir.get(), name, path_of(name), root->identity);
    flush_to_disk(fd.get(), path_of(name));
  }
  flush_to_disk(dir.get(), fmt::format("{}/{}", root->path, temporary));
}

void VersionWriter::Impl::move_into_place() {
  const bool made = make_private_dir(root->fd.get(), version_dir_name(version), root->version_path(version));
  const UniqueFd parent = root->open_version_dir(version);
  if (rename_new(root->fd.get(), temporary, parent.get(), root->node) != 0) {
    const int saved = errno;
    if (made) ::unlinkat(root->fd.get(), version_dir_name(version).c_str(), AT_REMOVEDIR);
    errno = saved;
    throw_errno("cannot rename {}/{} to {}", root->path, temporary, root->node_path(version));
  }
  in_place = true;
  flush_to_disk(parent.get(), root->version_path(version));
  flush_to_disk(root->fd.get(), root->path);
  write_lock.reset();
}

VersionWriter::VersionWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
VersionWriter::VersionWriter(VersionWriter&&) noexcept = default;
VersionWriter::~VersionWriter() = default;

uint32_t VersionWriter::version() const { return impl_->version; }

std::string VersionWriter::file_path(const std::string& name) const { return impl_->path_of(name); }

UniqueFd VersionWriter::create_file(const std::string& name) {
  const FsIdentity guard(impl_->root->identity);
  return impl_->create(name);
}

void VersionWriter::write_sealed(const std::string& name, const std::string& payload) {
  const std::function<void(uint64_t)> have = [](uint64_t) {};
  // What no reader would take is no version.
  const auto* const bytes = reinterpret_cast<const uint8_t*>(payload.data());
  const auto excess =
      name == kStateName ? find_excess(*pb::Capsule::descriptor(), bytes, payload.size(), have) : std::nullopt;
  if (excess || (name == kStateName && payload.size() > kMaxStateBytes)) {
    throw_error(ErrorKind::kRefused,
                "the processes have more than an image may hold: the state of {} bytes stands for {}", payload.size(),
                excess.value_or("more than may be read"));
  }
  const FsIdentity guard(impl_->root->identity);
  impl_->write_sealed(name, payload);
}

void VersionWriter::add_file(const std::string& name, uint64_t bytes, uint64_t xxh3) {
  impl_->files[name] = {bytes, xxh3, true};
}

void VersionWriter::add_need(uint32_t version) {
  if (version == impl_->version || impl_->needs.contains(version)) return;
  const FsIdentity guard(impl_->root->identity);
  if (version > impl_->version || !impl_->root->has_node(version)) {
    throw_error(ErrorKind::kImage, "version {} builds on version {}, which is not in {}", impl_->version, version,
                impl_->root->path);
  }
  impl_->needs.insert(version);
}

void VersionWriter::add_store(const std::string& name, const std::vector<uint32_t>& page_files,
                              const std::vector<uint32_t>& index_files) {
  pb::StoreFiles& files = impl_->stores[name];
  files.Clear();
  files.set_store(name);
  for (const uint32_t needed : page_files) {
    add_need(needed);
    files.add_page_files(needed);
  }
  for (const uint32_t needed : index_files) {
    add_need(needed);
    files.add_index_files(needed);
  }
}

void VersionWriter::set_compression(Compression compression) { impl_->compression = compression; }
Compression VersionWriter::compression() const { return impl_->compression; }

void VersionWriter::rename_file(const std::string& from, const std::string& to) {
  const FsIdentity guard(impl_->root->identity);
  if (::renameat(impl_->dir.get(), from.c_str(), impl_->dir.get(), to.c_str()) != 0) {
    throw_errno("cannot rename {}", impl_->path_of(from));
  }
  auto file = impl_->files.extract(from);
  file.key() = to;
  impl_->files.insert(std::move(file));
}

void VersionWriter::remove_file(const std::string& name) {
  const FsIdentity guard(impl_->root->identity);
  if (::unlinkat(impl_->dir.get(), name.c_str(), 0) != 0) throw_errno("cannot remove {}", impl_->path_of(name));
  impl_->files.erase(name);
}

uint64_t VersionWriter::bytes_written() const {
  uint64_t sum = 0;
  for (const auto& [name, file] : impl_->files) sum += file.bytes;
  return sum;
}

void VersionWriter::finish(pb::Manifest manifest) {
  Impl& impl = *impl_;
  manifest.set_format(std::max(manifest.format(), kImageFormat));
  if (impl.files.contains(std::string(kDirectoriesName))) manifest.set_format(kDirectoriesFormat);
  manifest.set_version(impl.version);
  manifest.clear_files();
  for (const auto& [name, file] : impl.files) {
    if (!file.recorded) throw_error(ErrorKind::kUsage, "{} was never finished", impl.path_of(name));
    pb::FileEntry* entry = manifest.add_files();
    entry->set_name(name);
    entry->set_bytes(file.bytes);
    entry->set_xxh3(file.xxh3);
  }
  manifest.clear_needs();
  for (const uint32_t version : impl.needs) manifest.add_needs(version);
  manifest.add_needs(impl.version);
  manifest.clear_stores();
  for (const auto& [name, files] : impl.stores) *manifest.add_stores() = files;
  manifest.clear_folded_from();
  for (const uint32_t version : impl.folded_from) manifest.add_folded_from(version);
  if (manifest.icp_release().empty()) manifest.set_icp_release(ICP_VERSION);
  if (manifest.stats().bytes_written() == 0) manifest.mutable_stats()->set_bytes_written(bytes_written());

  const FsIdentity guard(impl.root->identity);
  impl.write_sealed(std::string(kManifestName), manifest.SerializeAsString(), manifest.format());
  impl.flush_files();
}

void VersionWriter::publish() {
  const FsIdentity guard(impl_->root->identity);
  impl_->move_into_place();
}

void VersionWriter::commit(pb::Manifest manifest) {
  finish(std::move(manifest));
  publish();
}

}  // namespace icp
