// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/kept_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <vector>

#include "engine/base/times.h"
#include "engine/files/file_scan.h"
#include "engine/files/regular_file.h"
#include "engine/image/image.pb.h"

namespace icp {
namespace {

constexpr uint64_t kMostContent = 256 << 10, kMostContents = 4 << 20;  // bytes of a file, of all
constexpr size_t kMostKept = 64;                                       // files with content
constexpr uint64_t kMostRead = 256 << 20;      // bytes before a stop; the rest at later versions
constexpr uint64_t kMostHashed = 4ull << 30;   // bytes of a file: a restart reads them
constexpr uint64_t kMostReadInStop = 1 << 20;  // bytes of a file
constexpr uint64_t kHead = 64 << 10;           // bytes
constexpr size_t kChunk = 1 << 20;             // bytes

bool open_for_writing(const Description& description) {
  return (description.info.flags & O_PATH) == 0 && description.access() != O_RDONLY;
}

// Input that a program makes for itself is as likely to be gone as what it writes; what comes with the system is not.
bool may_vanish(const std::string& path) {
  static constexpr std::array kSystem = {"/usr/", "/etc/", "/lib/", "/lib64/", "/bin/", "/sbin/", "/opt/"};
  return std::none_of(kSystem.begin(), kSystem.end(), [&](const char* start) { return path.starts_with(start); });
}

}  // namespace

struct FileHash::State {
  XXH3_state_t* state = XXH3_createState();
  ~State() { XXH3_freeState(state); }
};

FileHash::FileHash() : state_(std::make_unique<State>()) { restart(); }
FileHash::~FileHash() = default;
FileHash::FileHash(FileHash&&) noexcept = default;
FileHash& FileHash::operator=(FileHash&&) noexcept = default;

FileHash::Value FileHash::value() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->state);
  return {hash.low64, hash.high64};
}

void FileHash::restart() {
  XXH3_128bits_reset(state_->state);
  bytes_ = 0;
}

void FileHash::add(std::span<const char> bytes) {
  XXH3_128bits_update(state_->state, bytes.data(), bytes.size());
  bytes_ += bytes.size();
}

bool FileHash::read_on(int fd, uint64_t end) {
  std::vector<char> buffer(std::min<uint64_t>(kChunk, end > bytes_ ? end - bytes_ : 0));
  while (bytes_ < end) {
    const ssize_t got =
        ::pread(fd, buffer.data(), std::min<uint64_t>(buffer.size(), end - bytes_), static_cast<off_t>(bytes_));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    add({buffer.data(), static_cast<size_t>(got)});
  }
  return true;
}

void KeptFiles::begin() {
  seen_.clear();
  chosen_.clear();
  chosen_bytes_ = read_bytes_ = 0;
  large_.clear();
}

// Chooses, in the order of the calls, whose content goes into the image.
bool KeptFiles::may_keep(const Description& description) {
  const Inode inode(description.stat.st_dev, description.stat.st_ino);
  if (chosen_.count(inode) != 0) return true;
  const auto size = static_cast<uint64_t>(description.stat.st_size);
  if (size > kMostContent || chosen_bytes_ + size > kMostContents || chosen_.size() >= kMostKept) return false;
  if (!open_for_writing(description) && (description.stat.st_uid != ::geteuid() || !may_vanish(description.target))) {
    return false;
  }
  chosen_.insert(inode);
  chosen_bytes_ += size;
  return true;
}

void KeptFiles::read_whole(File& file, int fd, uint64_t size) {
  file.content.resize(size);
  file.whole = ::pread(fd, file.content.data(), size, 0) == static_cast<ssize_t>(size);
  if (!file.whole) file.content.clear();
  file.hash.restart();
  if (file.whole) file.hash.add(file.content);
}

// In the stop nothing is looked at again: what was found before it may be out of date, and then fits nothing later.
void KeptFiles::hash(File& file, int fd, const struct stat& now, uint64_t most, bool stopped) {
  const auto size = static_cast<uint64_t>(now.st_size);
  if (!stopped) {
    FileHash head;
    const bool same_head = file.head_bytes > 0 && head.read_on(fd, file.head_bytes) && head.value() == file.head;
    // A beginning that differs, or a change that has added nothing, tells of writing in the middle.
    const bool changed = file.read && !is_unchanged(now, file.stat, file.read_ns) && now.st_size <= file.stat.st_size;
    if (!same_head || size < file.hash.bytes() || changed) file.hash.restart(), file.head_bytes = 0;
  }
  file.hash.read_on(fd, std::min({size, file.hash.bytes() + most, kMostHashed}));
  if (const uint64_t head_bytes = std::min(kHead, file.hash.bytes()); head_bytes != file.head_bytes) {
    FileHash head;
    if (!head.read_on(fd, head_bytes)) file.hash.restart();
    file.head_bytes = head_bytes;
    file.head = head.value();
  }
}

// Another description for one that cannot be read so, with the rights of the user, or root's for root's own processes.
// To open a file breaks the leases on it.
static UniqueFd open_to_read(const Description& description, int own) {
  if (description.access() != O_WRONLY && (description.info.flags & O_DIRECT) == 0)
    return UniqueFd(::fcntl(own, F_DUPFD_CLOEXEC, 0));
  const auto& locks = description.uses.front().locks;
  const bool leased =
      std::any_of(locks.begin(), locks.end(), [](const LockLine& lock) { return lock.kind == LockLine::Kind::kLease; });
  return UniqueFd(leased ? -1
                         : ::open(fmt::format("/proc/self/fd/{}", own).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
}

void KeptFiles::read(FileScan& scan, Description& description, bool keep, uint64_t most, bool stopped) {
  const int own = scan.take(description);
  if (own < 0) return;
  struct stat now {};
  const int64_t begin = now_ns(CLOCK_REALTIME);
  const UniqueFd fd = open_to_read(description, own);
  if (!fd || ::fstat(fd.get(), &now) != 0) return;
  File& file = files_[{now.st_dev, now.st_ino}];
  const uint64_t before = file.hash.bytes();
  if (keep) {
    read_whole(file, fd.get(), static_cast<uint64_t>(now.st_size));
    file.head_bytes = 0;
  } else {
    file.whole = false;
    file.content = {};
    hash(file, fd.get(), now, most, stopped);
  }
  const uint64_t after = file.hash.bytes();
  read_bytes_ += after < before || keep ? after : after - before;
  file.stat = now;
  file.read_ns = begin;
  file.read = true;
}

void KeptFiles::look(FileScan& scan) {
  begin();
  for (const bool writing : {true, false}) {
    for (const auto& description : scan.descriptions()) {
      if (!has_own_content(scan, *description) || open_for_writing(*description) != writing) continue;
      const Inode inode(description->stat.st_dev, description->stat.st_ino);
      const bool keep = may_keep(*description);
      if (!seen_.insert(inode).second || (!writing && !keep)) continue;
      if (save_ && !keep) {
        UniqueFd fd(::fcntl(scan.take(*description), F_DUPFD_CLOEXEC, 0));
        if (fd) large_.push_back({std::move(fd), description->target});
        continue;
      }
      const auto known = files_.find(inode);
      const bool done = known != files_.end() && known->second.read &&
                        is_unchanged(description->stat, known->second.stat, known->second.read_ns) &&
                        (keep ? known->second.whole
                              : known->second.hash.bytes() ==
                                    std::min(static_cast<uint64_t>(description->stat.st_size), kMostHashed));
      if (done || (!keep && read_bytes_ >= kMostRead)) continue;
      read(scan, *description, keep, kMostRead - std::min(kMostRead, read_bytes_), false);
    }
  }
  std::erase_if(files_, [&](const auto& file) { return seen_.count(file.first) == 0; });
}

void KeptFiles::capture(FileScan& scan, std::span<Description* const> descriptions) {
  std::set<Inode> filled;
  read_bytes_ = 0;
  for (const bool writing : {true, false}) {
    for (Description* description : descriptions) {
      if (!has_own_content(scan, *description) || open_for_writing(*description) != writing) continue;
      const Inode inode(description->stat.st_dev, description->stat.st_ino);
      const bool keep = may_keep(*description);
      if (!writing && !keep) continue;
      if (save_ && !keep) {
        description->message->mutable_regular()->set_object(save_(scan.take(*description), description->target));
        continue;
      }
      const File& before = files_[inode];
      const auto size = static_cast<uint64_t>(description->stat.st_size);
      if (!before.read || !is_unchanged(description->stat, before.stat, before.read_ns)) {
        const bool little = size > before.hash.bytes() && size - before.hash.bytes() <= kMostReadInStop;
        if (keep || (little && read_bytes_ < kMostContents)) read(scan, *description, keep, kMostReadInStop, true);
      }
      const File& file = files_[inode];
      pb::RegularFile& message = *description->message->mutable_regular();
      if (keep && file.whole && file.content.size() == size && filled.insert(inode).second) {
        message.set_content(file.content);
        message.set_has_content(true);
      }
      if (!writing || file.hash.bytes() > size) continue;
      message.set_hashed(file.hash.bytes());
      message.set_hash_low(file.hash.value().low);
      message.set_hash_high(file.hash.value().high);
    }
  }
}

}  // namespace icp
