// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/saved_directories.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/file_systems.h"
#include "engine/base/times.h"
#include "engine/image/image_dir.h"
#include "engine/image/image_layout.h"
#include "engine/image/saved_directories.pb.h"

namespace icp {
namespace {

constexpr uint64_t kLeastRoom = 64 << 10;  // bytes of an extent
constexpr uint64_t kMostRoom = 1ull << 47;
constexpr size_t kChunk = 1 << 20;  // bytes

[[noreturn]] void refuse(const std::string& path, int error) {
  throw Error(ErrorKind::kRefused, fmt::format("cannot read {}, which is to be kept: {}", path, errno_text(error)),
              error, "make it readable, or keep another directory (--checkpoint-files)");
}

void fill(pb::SavedEntry& entry, const std::string& name, const struct stat& status) {
  entry.set_name(name);
  entry.set_mode(status.st_mode);
  entry.set_dev(status.st_dev);
  entry.set_ino(status.st_ino);
  entry.set_mtime_ns(nanoseconds(status.st_mtim));
  entry.set_ctime_ns(nanoseconds(status.st_ctim));
}

}  // namespace

SavedDirectories::SavedDirectories(std::vector<std::string> paths, Identity identity)
    : paths_(std::move(paths)), identity_(std::move(identity)) {}
SavedDirectories::~SavedDirectories() = default;

UniqueFd SavedDirectories::open(const std::string& path) const {
  UniqueFd fd = open_saved(root_.get(), path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!fd) refuse(path, errno);
  return fd;
}

void SavedDirectories::begin(VersionWriter& version, const std::string& image, uint32_t parent, UniqueFd root) {
  if (empty()) return;
  root_ = std::move(root);
  for (const std::string& path : paths_) {
    const FsIdentity as_user(identity_);
    const UniqueFd fd = open(path);
    struct stat status {
    }, above{};
    if (::fstat(fd.get(), &status) != 0 || ::fstatat(fd.get(), "..", &above, 0) != 0) refuse(path, errno);
    // What is newer than a version is moved beside it, at a restart.
    if (path == "/" || above.st_dev != status.st_dev)
      throw Error(ErrorKind::kRefused, fmt::format("{}, which is to be kept, is a mount point", path), 0,
                  "name a directory below it (--checkpoint-files)");
  }
  if (parent == 0 || parent != last_version_) abandon();
  struct stat status {};
  {
    const FsIdentity as_user(identity_);
    if (::stat(image.c_str(), &status) != 0) throw_errno("cannot look at {}", image);
  }
  image_ = {status.st_dev, status.st_ino};
  version_ = &version;
  writer_ = std::make_unique<PageStoreWriter>(version, std::string(kDirectoriesStore), index_, &hashes_);
}

void SavedDirectories::abandon() {
  writer_.reset();
  list_.reset();
  version_ = nullptr;
  index_ = PageIndex();
  hashes_.clear();
  files_.clear();
  end_ = 0;
  last_version_ = 0;
}

void SavedDirectories::read() {
  if (empty()) return;
  const FsIdentity as_user(identity_);
  ++pass_;
  list_ = std::make_unique<pb::SavedDirectories>();
  for (const std::string& path : paths_) {
    pb::SavedDirectory& directory = *list_->add_directories();
    directory.set_path(path);
    const UniqueFd fd = open(path);
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0) refuse(path, errno);
    fill(*directory.add_entries(), {}, status);
    read_directory(fd.get(), {}, path, status.st_dev, directory);
  }
  for (auto file = files_.begin(); file != files_.end();) {
    if (file->second.pass == pass_) {
      ++file;
      continue;
    }
    if (file->second.capacity > 0) writer_->erase(file->second.address, file->second.address + file->second.capacity);
    file = files_.erase(file);
  }
}

void SavedDirectories::read_directory(int directory, const std::string& name, const std::string& path, dev_t device,
                                      pb::SavedDirectory& to) {
  const auto names = list_directory(directory);
  if (!names) refuse(path, errno);
  for (const std::string& last : *names)
    read_entry(directory, last, name.empty() ? last : name + "/" + last, path + "/" + last, device, to);
}

// What goes while it is looked at is not there.
void SavedDirectories::read_entry(int directory, const std::string& last, const std::string& name,
                                  const std::string& path, dev_t device, pb::SavedDirectory& to) {
  struct stat status {};
  if (::fstatat(directory, last.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno != ENOENT) refuse(path, errno);
    return;
  }
  const InodeKey key(status.st_dev, status.st_ino);
  if (S_ISDIR(status.st_mode)) {
    if (status.st_dev != device || key == image_) return;
    const UniqueFd below(::openat(directory, last.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!below && errno == ENOENT) return;
    if (!below) refuse(path, errno);
    fill(*to.add_entries(), name, status);
    read_directory(below.get(), name, path, device, to);
  } else if (S_ISLNK(status.st_mode)) {
    std::string text(4096, '\0');
    const ssize_t length = ::readlinkat(directory, last.c_str(), text.data(), text.size());
    if (length < 0 && errno != ENOENT) refuse(path, errno);
    if (length < 0) return;
    pb::SavedEntry& entry = *to.add_entries();
    fill(entry, name, status);
    entry.set_link(text.substr(0, static_cast<size_t>(length)));
  } else if (S_ISREG(status.st_mode)) {
    File& file = files_[key];
    file.pass = pass_;
    if ((!file.read || !is_unchanged(status, file.stat, file.read_ns)) && !read_file(directory, last, path, file))
      return;
    pb::SavedEntry& entry = *to.add_entries();
    fill(entry, name, file.stat);
    entry.set_size(static_cast<uint64_t>(file.stat.st_size));
    entry.set_address(file.address);
  }
}

// Somewhere else when it no longer fits; the content is then put anew.
void SavedDirectories::make_room(File& file, uint64_t bytes) {
  if (bytes <= file.capacity) return;
  if (file.capacity > 0) writer_->erase(file.address, file.address + file.capacity);
  uint64_t capacity = kLeastRoom;
  while (capacity < bytes) capacity *= 2;
  if (end_ + capacity > kMostRoom) throw_error(ErrorKind::kRefused, "the directories to be kept hold too much");
  file.address = end_;
  file.capacity = capacity;
  end_ += capacity;
}

// False when it is gone.
bool SavedDirectories::read_file(int directory, const std::string& last, const std::string& path, File& file) {
  const int64_t begin = now_ns(CLOCK_REALTIME);
  const UniqueFd fd(::openat(directory, last.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  if (!fd && errno == ENOENT) return false;
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0) refuse(path, errno);
  const auto before = file.read ? static_cast<uint64_t>(file.stat.st_size) : 0;
  buffer_.resize(kChunk);
  make_room(file, static_cast<uint64_t>(status.st_size));
  uint64_t at = 0;
  for (;;) {
    size_t held = 0;
    while (held < kChunk) {
      const ssize_t got = ::pread(fd.get(), buffer_.data() + held, kChunk - held, static_cast<off_t>(at + held));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) refuse(path, errno);
      if (got == 0) break;
      held += static_cast<size_t>(got);
    }
    // Grows while it is read: the end is for the next time.
    held = std::min(held, static_cast<size_t>(std::min<uint64_t>(kChunk, file.capacity - at)));
    if (held == 0) break;
    const size_t whole = (held + kPageBytes - 1) / kPageBytes * kPageBytes;
    std::fill(buffer_.begin() + static_cast<ptrdiff_t>(held), buffer_.begin() + static_cast<ptrdiff_t>(whole),
              std::byte(0));
    writer_->put(file.address + at, std::span(buffer_).first(whole), true);
    at += held;
    if (held < kChunk) break;
  }
  const uint64_t kept = (at + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (before > kept) writer_->erase(file.address + kept, file.address + file.capacity);
  file.stat = status;
  file.stat.st_size = static_cast<off_t>(at);
  file.read_ns = begin;
  file.read = true;
  return true;
}

void SavedDirectories::write() {
  if (empty()) return;
  writer_->finish();
  writer_.reset();
  std::string list;
  if (!list_->SerializeToString(&list) || list.size() > kMaxStateBytes)
    throw_error(ErrorKind::kRefused, "the directories to be kept hold too many files");
  version_->write_sealed(std::string(kDirectoriesName), list);
  last_version_ = version_->version();
  version_ = nullptr;
  list_.reset();
}

}  // namespace icp
