// SPDX-License-Identifier: GPL-2.0-or-later
// ImageDir::compact(): all pages of the latest version into files of one new version.
//
// The long part, copying the pages, holds no lock that a session needs. Versions taken meanwhile are caught up with at
// the end, under the write lock, by their indexes alone: a page that still lies where the folded version had it is in
// the new file, any other stays where the later version put it. Until the rename at the very end nothing of the image
// has changed.
#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <map>

#include "engine/base/error.h"
#include "engine/image/image_files.h"
#include "engine/image/image_layout.h"
#include "engine/image/image_lock.h"
#include "engine/image/image_prune.h"
#include "engine/image/image_root.h"
#include "engine/image/page_file.h"
#include "engine/image/page_index_file.h"
#include "engine/image/saved_directories.pb.h"
#include "engine/image/version_reader_impl.h"
#include "engine/image/version_writer_impl.h"

namespace icp {
namespace {

constexpr uint64_t kBatchPages = 4096;  // 16 MiB: read in the order of the files, put in the order of the addresses

}  // namespace

class ImageCompaction {
 public:
  explicit ImageCompaction(const ImageDir& image) : image_(image), root_(image.root_) {}

  ChainResult run(uint32_t keep, Compression compression);

 private:
  struct Run {
    uint64_t address, pages;
    PageLocation location;
  };
  struct Store {
    PageIndex base;    // as the folded version has it
    PageIndex folded;  // the same pages; only the records count
    std::unique_ptr<PageFileWriter> file;
  };

  void make_writer(Compression compression);
  void copy_store(const std::string& name);
  void copy_batch(Store& store, PageStoreReader& reader, std::vector<Run>& runs);
  void write_store(const VersionReader& top, const std::string& name);
  uint32_t write_version();
  VersionReader open(uint32_t version) {
    const FsIdentity guard(root_->identity);
    return image_.read_version(version, lock_for_reading(*root_));
  }
  uint32_t latest() const {
    const auto version = image_.latest();
    if (!version) throw_error(ErrorKind::kImage, "{} holds no version", root_->path);
    return *version;
  }
  ChainResult prune(uint32_t keep);

  const ImageDir& image_;
  std::shared_ptr<const ImageRoot> root_;
  std::optional<VersionReader> base_;
  std::unique_ptr<VersionWriter> writer_;
  std::map<std::string, Store> stores_;
  std::vector<std::byte> buffer_;
  std::vector<PageHash> hashes_;
};

void ImageCompaction::make_writer(Compression compression) {
  const FsIdentity guard(root_->identity);
  auto impl = std::make_unique<VersionWriter::Impl>();
  impl->root = root_;
  impl->compression = compression;
  impl->version = base_->version() + 1;  // provisional: renumbered in the end
  const std::string name = fold_dir_name(root_->node), path = fmt::format("{}/{}", root_->path, name);
  if (!make_private_dir(root_->fd.get(), name, path)) {
    const UniqueFd left = open_private_dir(root_->fd.get(), name, path, root_->identity);
    if (::flock(left.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      throw_error(ErrorKind::kBusy, "another process is folding the versions in {}", root_->path);
    }
    if (!remove_flat_dir(root_->fd.get(), name)) throw_errno("cannot remove the leftover {}", path);
    make_private_dir(root_->fd.get(), name, path);
  }
  impl->dir = open_private_dir(root_->fd.get(), name, path, root_->identity);
  if (::flock(impl->dir.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw_error(ErrorKind::kBusy, "another process is folding the versions in {}", root_->path);
  }
  impl->temporary = name;
  writer_.reset(new VersionWriter(std::move(impl)));
}

void ImageCompaction::copy_store(const std::string& name) {
  Store& store = stores_[name];
  PageStoreReader reader(*base_, name);
  if (reader.index().pages() > 0) store.file = std::make_unique<PageFileWriter>(*writer_, name);
  std::vector<Run> runs;
  uint64_t held = 0;
  reader.index().for_each_run([&](uint64_t address, uint64_t pages, PageLocation location) {
    while (pages > 0) {
      const uint64_t part = std::min(pages, kBatchPages - held);
      runs.push_back({address, part, location});
      address += part * kPageBytes;
      location.record += part;
      pages -= part;
      held += part;
      if (held < kBatchPages) continue;
      copy_batch(store, reader, runs);
      held = 0;
    }
  });
  if (held > 0) copy_batch(store, reader, runs);
  if (store.file) store.file->flush_records();
  store.base = reader.take_index();
}

void ImageCompaction::copy_batch(Store& store, PageStoreReader& reader, std::vector<Run>& runs) {
  struct Part {
    const Run* run;
    uint64_t first;  // page in the buffer
  };
  std::vector<Part> parts;
  uint64_t count = 0;
  for (const Run& run : runs) {
    parts.push_back({&run, count});
    count += run.pages;
  }
  std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    return std::pair(a.run->location.version, a.run->location.record) <
           std::pair(b.run->location.version, b.run->location.record);
  });
  buffer_.resize(std::max<size_t>(buffer_.size(), count * kPageBytes));
  for (const Part& part : parts) {
    reader.read(part.run->location, part.run->pages,
                std::span(buffer_).subspan(part.first * kPageBytes, part.run->pages * kPageBytes));
  }
  hashes_.resize(count);
  for (uint64_t i = 0; i < count; ++i) hashes_[i] = hash_page(buffer_.data() + i * kPageBytes);
  PageFileWriter::Pending pending;
  uint64_t record = store.file->append(buffer_.data(), hashes_.data(), count, pending);
  store.file->write(pending);
  for (const Run& run : runs) {
    for (uint64_t i = 0; i < run.pages; ++i) store.folded.set(run.address + i * kPageBytes, {1, record++});
  }
  runs.clear();
}

void ImageCompaction::write_store(const VersionReader& top, const std::string& name) {
  PageStoreReader reader(top, name);
  const auto found = stores_.find(name);
  PageIndex index;
  reader.index().for_each_run([&](uint64_t address, uint64_t pages, PageLocation location) {
    for (uint64_t i = 0; i < pages; ++i, address += kPageBytes, ++location.record) {
      const bool same = found != stores_.end() && found->second.base.find(address) == location;
      index.set(address, same ? PageLocation{writer_->version(), found->second.folded.find(address).record} : location);
    }
  });
  if (found != stores_.end()) {
    if (found->second.file) found->second.file->finish(*writer_);
    stores_.erase(found);
  }
  PageIndexFile::write(index, *writer_, name);
}

// Under the write lock. Returns the new version.
uint32_t ImageCompaction::write_version() {
  const uint32_t number = latest();
  const VersionReader top = number == base_->version() ? *base_ : open(number);
  VersionWriter::Impl& impl = *writer_->impl_;
  {
    const FsIdentity guard(root_->identity);
    impl.version = root_->version_numbers(false).back() + 1;
  }
  if (impl.version > kMaxVersion) throw_error(ErrorKind::kUsage, "{} has no version number left", root_->path);
  uint64_t pages = 0;
  for (const pb::StoreFiles& store : top.manifest().stores()) {
    const auto found = stores_.find(store.store());
    if (found != stores_.end() && found->second.file) pages += found->second.file->records();
    write_store(top, store.store());
  }
  // Stores that the later version has no more.
  for (auto& [name, store] : stores_) {
    if (store.file) writer_->remove_file(page_file_name(name, base_->version() + 1));
  }
  stores_.clear();
  writer_->write_sealed(std::string(kStateName), top.read_state().SerializeAsString());
  if (const std::string name(kDirectoriesName); top.has_file(name)) {
    pb::SavedDirectories directories;
    top.read_sealed(name, directories);
    writer_->write_sealed(name, directories.SerializeAsString());
  }

  pb::Manifest manifest = top.manifest();
  manifest.set_parent(number);
  manifest.set_icp_release(ICP_VERSION);
  for (const uint32_t before : manifest.folded_from()) impl.folded_from.push_back(before);
  impl.folded_from.push_back(number);
  manifest.mutable_stats()->set_pages_written(pages);
  manifest.mutable_stats()->clear_bytes_written();
  manifest.mutable_stats()->set_full(impl.needs.empty());
  writer_->commit(manifest);
  return writer_->version();
}

ChainResult ImageCompaction::prune(uint32_t keep) {
  base_.reset();
  const FsIdentity guard(root_->identity);
  try {
    const UniqueFd removing = lock_for_removal(*root_);
    return prune_versions(*root_, image_.readable_versions(), keep);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kBusy) throw;
    ChainResult result;
    result.left = error.what();
    return result;
  }
}

ChainResult ImageCompaction::run(uint32_t keep, Compression compression) {
  base_.emplace(open(latest()));
  if (base_->manifest().job().nodes_size() > 1) {
    throw Error(ErrorKind::kRefused,
                fmt::format("the versions in {} are of several nodes: they cannot be folded", root_->path), 0,
                "icp prune removes old ones, node by node");
  }
  const bool single = base_->manifest().needs_size() == 1;
  if (!single) {
    make_writer(compression);
    for (const pb::StoreFiles& store : base_->manifest().stores()) copy_store(store.store());
  }
  UniqueFd writing;
  {
    const FsIdentity guard(root_->identity);
    writing = lock_for_writing(*root_);
  }
  const uint32_t version = single ? 0 : write_version();
  ChainResult result = prune(keep);
  result.version = version;
  return result;
}

ChainResult ImageDir::compact(uint32_t keep, Compression compression) const {
  return ImageCompaction(*this).run(keep, compression);
}

}  // namespace icp
