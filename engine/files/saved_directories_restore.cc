// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/file_systems.h"
#include "engine/base/times.h"
#include "engine/files/file_table.h"
#include "engine/files/saved_directories.h"
#include "engine/image/image.pb.h"
#include "engine/image/image_dir.h"
#include "engine/image/image_layout.h"
#include "engine/image/saved_directories.pb.h"

namespace icp {
namespace {

constexpr uint64_t kChunkPages = 256;
constexpr int kMostAside = 1000;

[[noreturn]] void bad_image(const std::string& path, const char* why) {
  throw_error(ErrorKind::kImage, "the image keeps {} in a way that cannot be: {}", path, why);
}

bool is_usable_name(const std::string& name) {
  if (name.empty() || name.size() > 4096 || name.front() == '/' || name.find('\0') != std::string::npos) return false;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return true;
}

// One directory. Its parts are opened one by one, through no link.
class PutBack {
 public:
  PutBack(const pb::SavedDirectory& saved, PageStoreReader& content, int root_fd, ChangedFiles changed,
          int64_t taken_ns, const std::set<InodeKey>& mapped, const std::vector<int>& in_use,
          std::set<InodeKey>& remade)
      : saved_(saved),
        content_(content),
        root_fd_(root_fd),
        changed_(changed),
        taken_ns_(taken_ns),
        mapped_(mapped),
        remade_(remade) {
    for (const pb::SavedEntry& entry : saved.entries()) by_name_[entry.name()] = &entry;
    for (int fd = 0; fd <= 2; ++fd) leave_alone(fd);
    for (const int fd : in_use) leave_alone(fd);
  }

  void run() {
    if (!is_usable_path(saved_.path()) || saved_.path() == "/" || saved_.entries_size() == 0)
      bad_image(saved_.path(), "it has no path");
    top_ = open_saved(root_fd_, saved_.path(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (!top_ && errno == ENOENT) make_top();
    struct stat status {};
    if (!top_ || ::fstat(top_.get(), &status) != 0) throw_errno("cannot open {}, which the image keeps", saved_.path());
    device_ = status.st_dev;
    remove_newer(top_.get(), {});
    for (const pb::SavedEntry& entry : saved_.entries()) put(entry);
    for (auto entry = saved_.entries().rbegin(); entry != saved_.entries().rend(); ++entry)
      if (S_ISDIR(entry->mode())) set_times(*entry);
    if (put_ > 0 || aside_count_ > 0) {
      spdlog::info(
          "{} is as it was at the checkpoint: {} files put back{}", saved_.path(), put_,
          aside_count_ == 0 ? "" : fmt::format(", {} replaced or newer ones are in {} now", aside_count_, aside_path_));
    }
  }

 private:
  void leave_alone(int fd) {
    struct stat status {};
    if (::fstat(fd, &status) == 0) own_.emplace(status.st_dev, status.st_ino);
  }

  // Private directories of a job are new ones in its next run.
  void make_top() {
    const UniqueFd parent = open_saved(root_fd_, directory_of(saved_.path()), O_RDONLY | O_DIRECTORY);
    if (!parent || ::mkdirat(parent.get(), last_name_of(saved_.path()).c_str(), 0700) != 0)
      throw_errno("cannot make {}, which the image keeps", saved_.path());
    top_ = open_saved(root_fd_, saved_.path(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (top_ && ::fchmod(top_.get(), saved_.entries(0).mode() & 07777) != 0)
      throw_errno("cannot set the mode of {}", saved_.path());
  }

  std::string path_of(const std::string& name) const {
    return name.empty() ? saved_.path() : saved_.path() + "/" + name;
  }

  // Before anything is changed.
  void about_to_change(const std::string& name, const char* what) const {
    if (changed_ != ChangedFiles::kRefuse) return;
    throw Error(
        ErrorKind::kImage, fmt::format("{} {}", path_of(name), what), 0,
        "restart with --changed-files restore to put it back, or accept to go on with it (icp.yaml: changed_files)");
  }

  // The directory that `name` is in. -1 and errno.
  UniqueFd parent_of(const std::string& name) const {
    const size_t slash = name.rfind('/');
    return open_part(top_.get(), slash == std::string::npos ? std::string() : name.substr(0, slash));
  }
  static UniqueFd open_part(int top, const std::string& name) {
    UniqueFd at(::fcntl(top, F_DUPFD_CLOEXEC, 0));
    for (size_t begin = 0; at && begin < name.size();) {
      const size_t end = std::min(name.find('/', begin), name.size());
      at.reset(
          ::openat(at.get(), name.substr(begin, end - begin).c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      begin = end + 1;
    }
    return at;
  }
  static std::string last_of(const std::string& name) { return name.substr(name.rfind('/') + 1); }

  // Beside the directory, so that a rename is enough.
  void make_aside() {
    if (aside_) return;
    const UniqueFd parent = open_saved(root_fd_, directory_of(saved_.path()), O_RDONLY | O_DIRECTORY);
    for (int number = 1; parent && number <= kMostAside; ++number) {
      aside_path_ = saved_.path() + ".after-checkpoint" + (number == 1 ? "" : fmt::format(".{}", number));
      const std::string name = last_name_of(aside_path_);
      if (::mkdirat(parent.get(), name.c_str(), 0700) != 0) {
        if (errno == EEXIST) continue;
        break;
      }
      aside_.reset(::openat(parent.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      if (aside_) return;
    }
    throw Error(ErrorKind::kSystem,
                fmt::format("cannot make {} for what is newer than the checkpoint: {}", aside_path_, errno_text(errno)),
                errno, "make its directory writable, or restart with --changed-files accept");
  }

  // The same directories there. The last part is not made.
  UniqueFd aside_parent_of(const std::string& name) {
    make_aside();
    UniqueFd at(::fcntl(aside_.get(), F_DUPFD_CLOEXEC, 0));
    for (size_t begin = 0, end = 0; at && (end = name.find('/', begin)) != std::string::npos; begin = end + 1) {
      const std::string part = name.substr(begin, end - begin);
      if (::mkdirat(at.get(), part.c_str(), 0700) != 0 && errno != EEXIST) return {};
      at.reset(::openat(at.get(), part.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    }
    return at;
  }

  void put_aside(const std::string& name) {
    const UniqueFd from = parent_of(name), to = aside_parent_of(name);
    if (!from || !to || ::renameat(from.get(), last_of(name).c_str(), to.get(), last_of(name).c_str()) != 0)
      throw_errno("cannot move {} to {}", path_of(name), aside_path_);
    ++aside_count_;
  }

  // Its content: the file itself keeps its inode.
  void copy_aside(const std::string& name, int fd) {
    const UniqueFd to_directory = aside_parent_of(name);
    const UniqueFd to(to_directory ? ::openat(to_directory.get(), last_of(name).c_str(),
                                              O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)
                                   : -1);
    std::vector<char> buffer(kChunkPages * kPageBytes);
    ssize_t got = to ? 0 : -1;
    for (off_t at = 0; got >= 0; at += got) {
      got = ::pread(fd, buffer.data(), buffer.size(), at);
      if (got <= 0) break;
      if (::pwrite(to.get(), buffer.data(), static_cast<size_t>(got), at) != got) got = -1;
    }
    if (got < 0) throw_errno("cannot copy {} to {}", path_of(name), aside_path_);
    ++aside_count_;
  }

  static bool is_kept(unsigned mode) { return S_ISREG(mode) || S_ISDIR(mode) || S_ISLNK(mode); }

  // What has another type than it had, or was not there.
  void remove_newer(int directory, const std::string& name) {
    const auto names = list_directory(directory);
    if (!names) throw_errno("cannot read {}", path_of(name));
    for (const std::string& last : *names) {
      const std::string below = name.empty() ? last : name + "/" + last;
      struct stat status {};
      if (::fstatat(directory, last.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) continue;
      if (!is_kept(status.st_mode) || own_.contains({status.st_dev, status.st_ino})) continue;
      if (S_ISDIR(status.st_mode) && (status.st_dev != device_ || holds_image(directory, last))) continue;
      const auto saved = by_name_.find(below);
      if (saved == by_name_.end() || (saved->second->mode() & S_IFMT) != (status.st_mode & S_IFMT)) {
        about_to_change(below, "has been made since the checkpoint");
        put_aside(below);
      } else if (S_ISDIR(status.st_mode)) {
        const UniqueFd fd(::openat(directory, last.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
        if (!fd) throw_errno("cannot read {}", path_of(below));
        remove_newer(fd.get(), below);
      }
    }
  }

  // The versions themselves may lie there: they were never kept.
  static bool holds_image(int directory, const std::string& name) {
    const UniqueFd fd(::openat(directory, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    const auto names = fd ? list_directory(fd.get()) : std::nullopt;
    return names && std::any_of(names->begin(), names->end(), [](const std::string& one) {
             return one.starts_with(".read.") && one.ends_with(".lock");
           });
  }

  void put(const pb::SavedEntry& entry) {
    const std::string& name = entry.name();
    if (name.empty()) return;
    if (!is_usable_name(name) || !is_kept(entry.mode())) bad_image(path_of(name), "its name or type");
    const UniqueFd parent = parent_of(name);
    if (!parent) throw_errno("cannot open the directory of {}", path_of(name));
    struct stat now {};
    const bool there = ::fstatat(parent.get(), last_of(name).c_str(), &now, AT_SYMLINK_NOFOLLOW) == 0;
    if (there && own_.contains({now.st_dev, now.st_ino})) return;
    if (there && (now.st_mode & S_IFMT) != (entry.mode() & S_IFMT)) return;  // a socket, say: not ours
    if (S_ISDIR(entry.mode())) {
      put_directory(entry, parent.get(), there ? &now : nullptr);
    } else if (S_ISLNK(entry.mode())) {
      put_link(entry, parent.get(), there);
    } else {
      put_file(entry, parent.get(), there ? &now : nullptr);
    }
  }

  void put_directory(const pb::SavedEntry& entry, int parent, const struct stat* now) {
    if (now != nullptr) return;
    about_to_change(entry.name(), "is gone since the checkpoint");
    if (::mkdirat(parent, last_of(entry.name()).c_str(), 0700) != 0)
      throw_errno("cannot make {}", path_of(entry.name()));
    if (::fchmodat(parent, last_of(entry.name()).c_str(), entry.mode() & 01777, 0) != 0)
      throw_errno("cannot set the mode of {}", path_of(entry.name()));
  }

  void put_link(const pb::SavedEntry& entry, int parent, bool there) {
    const std::string last = last_of(entry.name());
    std::string text(4096, '\0');
    const ssize_t length = there ? ::readlinkat(parent, last.c_str(), text.data(), text.size()) : -1;
    if (length >= 0 && text.substr(0, static_cast<size_t>(length)) == entry.link()) return;
    about_to_change(entry.name(), there ? "is another link than at the checkpoint" : "is gone since the checkpoint");
    if (there) put_aside(entry.name());
    if (::symlinkat(entry.link().c_str(), parent, last.c_str()) != 0)
      throw_errno("cannot make {}", path_of(entry.name()));
    ++put_;
  }

  void put_file(const pb::SavedEntry& entry, int parent, const struct stat* now) {
    const InodeKey then(entry.dev(), entry.ino());
    const std::string last = last_of(entry.name());
    if (const auto first = first_names_.find(then); first != first_names_.end()) {
      const UniqueFd other = parent_of(first->second);
      struct stat status {};
      if (!other || ::fstatat(other.get(), last_of(first->second).c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0)
        throw_errno("cannot look at {}", path_of(first->second));
      if (now != nullptr && status.st_ino == now->st_ino && status.st_dev == now->st_dev) return;
      about_to_change(entry.name(), "is another file than at the checkpoint");
      if (now != nullptr) put_aside(entry.name());
      if (::linkat(other.get(), last_of(first->second).c_str(), parent, last.c_str(), 0) != 0)
        throw_errno("cannot link {} to {}", path_of(entry.name()), first->second);
      return;
    }
    if (now == nullptr && mapped_.contains(then)) return;  // comes back with the memory, under this name
    first_names_[then] = entry.name();
    if (now != nullptr && is_as_it_was(entry, *now)) return;
    const bool same = now != nullptr && now->st_ino == entry.ino();
    UniqueFd fd;
    if (same) {
      fd.reset(::openat(parent, last.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
      if (fd && holds_the_same(entry, fd.get(), *now)) return set_attributes(entry, fd.get());
      about_to_change(entry.name(), "holds something else than at the checkpoint");
      if (fd) copy_aside(entry.name(), fd.get());
    }
    if (!fd) {
      about_to_change(entry.name(),
                      now == nullptr ? "is gone since the checkpoint" : "is another file than at the checkpoint");
      if (now != nullptr) put_aside(entry.name());
      fd.reset(::openat(parent, last.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    }
    if (!fd) throw_errno("cannot make {}", path_of(entry.name()));
    write_content(entry, fd.get());
    set_attributes(entry, fd.get());
    remade_.insert(then);
    ++put_;
  }

  // Times of files go in steps of the clock tick: what was written right after the stop may have that of before.
  bool is_as_it_was(const pb::SavedEntry& entry, const struct stat& now) const {
    return now.st_ino == entry.ino() && static_cast<uint64_t>(now.st_size) == entry.size() &&
           nanoseconds(now.st_mtim) == entry.mtime_ns() && nanoseconds(now.st_ctim) == entry.ctime_ns() &&
           entry.ctime_ns() + kFileTimeStep < taken_ns_ && now.st_ctim.tv_nsec != 0;
  }

  // Calls `visit(offset, bytes)` for all that the file held, where `bytes` is empty for what is zeros.
  template <typename Visit>
  void for_content(const pb::SavedEntry& entry, Visit visit) {
    const uint64_t end = entry.address() + (entry.size() + kPageBytes - 1) / kPageBytes * kPageBytes;
    if (entry.address() % kPageBytes != 0 || end < entry.address() || end > 1ull << 48)
      bad_image(path_of(entry.name()), "where its content lies");
    std::vector<std::byte> buffer(kChunkPages * kPageBytes);
    content_.index().for_each_run(entry.address(), end, [&](uint64_t address, uint64_t pages, PageLocation location) {
      for (uint64_t done = 0; done < pages; done += kChunkPages) {
        const uint64_t count = std::min(kChunkPages, pages - done);
        const std::span part = std::span(buffer).first(count * kPageBytes);
        content_.read({location.version, location.record + done}, count, part);
        const uint64_t offset = address + done * kPageBytes - entry.address();
        visit(offset, part.first(std::min<uint64_t>(part.size(), entry.size() - offset)));
      }
    });
  }

  bool holds_the_same(const pb::SavedEntry& entry, int fd, const struct stat& now) {
    if (static_cast<uint64_t>(now.st_size) != entry.size()) return false;
    bool same = true;
    uint64_t next = 0;
    std::vector<std::byte> buffer(kChunkPages * kPageBytes);
    const auto read = [&](uint64_t offset, size_t bytes) {
      return ::pread(fd, buffer.data(), bytes, static_cast<off_t>(offset)) == static_cast<ssize_t>(bytes);
    };
    const auto zeros_until = [&](uint64_t end) {
      for (; same && next < end; next += std::min<uint64_t>(buffer.size(), end - next)) {
        const size_t bytes = std::min<uint64_t>(buffer.size(), end - next);
        same = read(next, bytes) && std::all_of(buffer.begin(), buffer.begin() + static_cast<ptrdiff_t>(bytes),
                                                [](std::byte byte) { return byte == std::byte(0); });
      }
    };
    for_content(entry, [&](uint64_t offset, std::span<const std::byte> bytes) {
      zeros_until(offset);
      same = same && read(offset, bytes.size()) && std::equal(bytes.begin(), bytes.end(), buffer.begin());
      next = offset + bytes.size();
    });
    zeros_until(entry.size());
    return same;
  }

  void write_content(const pb::SavedEntry& entry, int fd) {
    if (entry.size() > static_cast<uint64_t>(INT64_MAX)) bad_image(path_of(entry.name()), "its size");
    if (::ftruncate(fd, 0) != 0 || ::ftruncate(fd, static_cast<off_t>(entry.size())) != 0)
      throw_errno("cannot write {}", path_of(entry.name()));
    for_content(entry, [&](uint64_t offset, std::span<const std::byte> bytes) {
      if (::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset)) != static_cast<ssize_t>(bytes.size()))
        throw_errno("cannot write {}", path_of(entry.name()));
    });
  }

  static std::array<timespec, 2> times_of(const pb::SavedEntry& entry) {
    return {{{0, UTIME_OMIT}, {entry.mtime_ns() / 1'000'000'000, entry.mtime_ns() % 1'000'000'000}}};
  }

  // No set-user-id or set-group-id program comes of an image.
  void set_attributes(const pb::SavedEntry& entry, int fd) {
    if (::fchmod(fd, entry.mode() & 0777) != 0 || ::futimens(fd, times_of(entry).data()) != 0)
      throw_errno("cannot set the mode and time of {}", path_of(entry.name()));
  }
  void set_times(const pb::SavedEntry& entry) {
    const UniqueFd fd =
        entry.name().empty() ? UniqueFd(::fcntl(top_.get(), F_DUPFD_CLOEXEC, 0)) : open_part(top_.get(), entry.name());
    if (fd && ::futimens(fd.get(), times_of(entry).data()) != 0)
      spdlog::debug("the time of {} stays: {}", path_of(entry.name()), errno_text(errno));
  }

  const pb::SavedDirectory& saved_;
  PageStoreReader& content_;
  int root_fd_;
  ChangedFiles changed_;
  int64_t taken_ns_;
  const std::set<InodeKey>& mapped_;
  std::set<InodeKey>& remade_;
  std::map<std::string, const pb::SavedEntry*> by_name_;
  std::map<InodeKey, std::string> first_names_;
  std::set<InodeKey> own_;  // our standard streams are no part of the job
  UniqueFd top_, aside_;
  dev_t device_ = 0;
  std::string aside_path_;
  unsigned put_ = 0, aside_count_ = 0;
};

}  // namespace

std::set<InodeKey> put_back_directories(const VersionReader& version, const pb::Capsule& capsule,
                                        const Identity& identity, int root_fd, ChangedFiles changed,
                                        const std::vector<int>& in_use, const PathMap& paths) {
  std::set<InodeKey> remade;
  const std::string name(kDirectoriesName);
  if (!version.has_file(name) || changed == ChangedFiles::kAccept) return remade;
  pb::SavedDirectories saved;
  version.read_sealed(name, saved);
  PageStoreReader content(version, std::string(kDirectoriesStore));
  std::set<InodeKey> mapped;
  for (const pb::MemoryObject& object : capsule.objects())
    if (object.kind() == pb::MemoryObject::MAPPED_FILE) mapped.emplace(object.dev(), object.ino());
  const FsIdentity as_user(identity);
  for (pb::SavedDirectory& directory : *saved.mutable_directories()) {
    directory.set_path(mapped_path(paths, directory.path()));
    PutBack(directory, content, root_fd, changed, static_cast<int64_t>(version.manifest().taken_unix_ns()), mapped,
            in_use, remade)
        .run();
  }
  return remade;
}

}  // namespace icp
