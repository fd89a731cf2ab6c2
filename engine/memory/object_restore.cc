// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/object_restore.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstring>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/procfs.h"
#include "engine/base/times.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

constexpr uint64_t kMaxObject = 1ull << 46;  // bytes; more than can be mapped
constexpr uint64_t kChunkPages = 256;        // 1 MiB, stays in the cache
constexpr uint32_t kOpenFlags = O_ACCMODE | O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME | O_SYNC | O_DSYNC;

void write_all(int fd, const std::byte* from, size_t bytes, uint64_t offset, const std::string& what) {
  while (bytes > 0) {
    const ssize_t done = ::pwrite(fd, from, bytes, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) throw_errno("cannot write {}", what);
    from += done;
    offset += static_cast<uint64_t>(done);
    bytes -= static_cast<size_t>(done);
  }
}

std::string describe(const pb::MemoryObject& object) {
  return object.path().empty() ? fmt::format("memory object {}", object.id()) : object.path();
}

std::vector<std::string> names_of(const pb::MemoryObject& object) {
  std::vector<std::string> names{object.path()};
  names.insert(names.end(), object.links().begin(), object.links().end());
  return names;
}

bool is_object(int fd, const pb::MemoryObject& object) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 && status.st_dev == object.dev() && status.st_ino == object.ino();
}

// Whether a process that can be looked at (others have no right to the user's files) maps the inode or has it open.
bool in_use(const struct stat& file) {
  for (const int pid : list_processes()) {
    if (pid == ::getpid()) continue;
    try {
      for (const MapsEntry& entry : MapsEntry::read(pid))
        if (makedev(entry.dev_major, entry.dev_minor) == file.st_dev && entry.ino == file.st_ino) return true;
      for (const int number : list_proc_numbers(pid, "fd")) {
        struct stat status {};
        if (::stat(fmt::format("/proc/{}/fd/{}", pid, number).c_str(), &status) == 0 && status.st_dev == file.st_dev &&
            status.st_ino == file.st_ino) {
          return true;
        }
      }
    } catch (const Error&) {
      continue;
    }
  }
  return false;
}

// Another file has a name of an object's: what an earlier restart left behind may go, what is used may not.
void check_replaceable(int fd, const std::string& path, const Identity& identity) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw_errno("cannot look at {}", path);
  if (status.st_uid == identity.uid && S_ISREG(status.st_mode) && !in_use(status)) {
    spdlog::info("{} is another file than at the checkpoint, which nobody uses: it is replaced", path);
    return;
  }
  throw Error(ErrorKind::kRefused,
              fmt::format("{} is another file than at the checkpoint (inode {} now), and {}", path, status.st_ino,
                          status.st_uid == identity.uid ? "in use" : "another user's"),
              0, "end the program that uses it, or move it away");
}

// Calls `take(offset, bytes)` with the object's saved content, cut at its size. kImage for pages beyond it.
void for_each_saved(const VersionReader& version, const pb::MemoryObject& object,
                    const std::function<void(uint64_t, std::span<const std::byte>)>& take) {
  PageStoreReader reader(version, object.index());
  std::vector<std::byte> buffer(kChunkPages * kPageSize);
  const uint64_t size = object.size();
  reader.index().for_each_run_in_file_order(0, 1ull << 48, [&](uint64_t offset, uint64_t pages, PageLocation location) {
    if (offset + pages * kPageSize > page_up(size)) {
      throw_error(ErrorKind::kImage, "damaged image: pages beyond the end of memory object {}", object.id());
    }
    while (pages > 0) {
      const uint64_t count = std::min(pages, kChunkPages);
      const std::span part(buffer.data(), count * kPageSize);
      reader.read(location, count, part);
      take(offset, part.first(std::min<uint64_t>(part.size(), size - offset)));
      offset += part.size();
      location.record += count;
      pages -= count;
    }
  });
}

// Shared anonymous memory is a file without a name; one that looks exactly like what mmap(MAP_SHARED | MAP_ANONYMOUS)
// makes can be had by such a mapping of our own, through its map_files link.
UniqueFd anonymous_shared(uint64_t size) {
  void* at = ::mmap(nullptr, page_up(size), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw_errno("cannot make {} bytes of shared memory", size);
  const auto start = reinterpret_cast<uint64_t>(at);
  UniqueFd fd(
      ::open(fmt::format("/proc/self/map_files/{:x}-{:x}", start, start + page_up(size)).c_str(), O_RDWR | O_CLOEXEC));
  const bool refused = !fd && errno == EPERM;
  ::munmap(at, page_up(size));
  // Without CAP_CHECKPOINT_RESTORE the nearest thing that there is a descriptor of.
  if (refused) fd.reset(::memfd_create("shared", MFD_CLOEXEC));
  if (!fd) throw_errno("cannot open shared memory of {} bytes", size);
  return fd;
}

}  // namespace

ObjectRestore::ObjectRestore(const VersionReader& version, const pb::Capsule& capsule, RestoredFiles& files,
                             const RestoredSysv* sysv, IpcAccess* ipc)
    : version_(version), capsule_(capsule), files_(files), sysv_(sysv), ipc_(ipc), written_files_(capsule) {
  for (const pb::MemoryObject& object : capsule.objects()) {
    if (object.id() == 0 || !by_id_.emplace(object.id(), &object).second) {
      throw_error(ErrorKind::kImage, "damaged image: two memory objects are numbered {}", object.id());
    }
  }
}

ObjectRestore::~ObjectRestore() {
  if (done_) return;
  for (const auto& [id, made] : made_) {
    for (const std::string& name : made.names) files_.unlink(name);
    if (!made.aside.empty()) files_.rename(made.aside, by_id_.at(id)->path());
    for (auto directory = made.directories.rbegin(); directory != made.directories.rend(); ++directory)
      files_.remove_directory(*directory);
  }
}

const pb::MemoryObject& ObjectRestore::find(uint32_t id) const {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) throw_error(ErrorKind::kImage, "damaged image: there is no memory object {}", id);
  return *found->second;
}

void ObjectRestore::check() const {
  for (const auto& [id, object] : by_id_) {
    if (object->size() == 0 && object->kind() != pb::MemoryObject::MEMFD &&
        object->kind() != pb::MemoryObject::SHM_FILE && object->kind() != pb::MemoryObject::DELETED_FILE) {
      throw_error(ErrorKind::kImage, "damaged image: memory object {} has no size", id);
    }
    if (object->size() > kMaxObject || object->mode() > 07777) {
      throw_error(ErrorKind::kImage, "damaged image: impossible size or mode of memory object {}", id);
    }
    switch (object->kind()) {
      case pb::MemoryObject::ANON_SHARED:
      case pb::MemoryObject::MEMFD:
        break;
      case pb::MemoryObject::SYSV:
        if (sysv_ != nullptr) new_shmid(*object);
        break;
      case pb::MemoryObject::SHM_FILE:
        for (const std::string& name : names_of(*object)) {
          if (!name.starts_with("/dev/shm/") || name.find("/../") != std::string::npos || name.ends_with('/')) {
            throw_error(ErrorKind::kImage, "damaged image: {} is not in /dev/shm", name);
          }
        }
        break;
      case pb::MemoryObject::DELETED_FILE:
      case pb::MemoryObject::MAPPED_FILE:
        if (!object->path().starts_with('/')) {
          throw_error(ErrorKind::kImage, "damaged image: memory object {} has no path", id);
        }
        if (object->kind() == pb::MemoryObject::MAPPED_FILE) {
          const UniqueFd fd = find_mapped(*object);
          if (!fd && (errno != ENOENT || !is_whole(*object))) {
            throw_errno("cannot open the file {}, which was mapped for writing", object->path());
          }
        }
        break;
      default:
        throw_error(ErrorKind::kImage, "damaged image: memory object {} is of an unknown kind", id);
    }
  }
}

int ObjectRestore::new_shmid(const pb::MemoryObject& object) const {
  if (sysv_ != nullptr) {
    for (const auto& [old_id, new_id] : sysv_->shm_ids) {
      if (old_id == object.shmid()) return new_id;
    }
  }
  throw_error(ErrorKind::kImage, "damaged image: there is no System V segment {}", object.shmid());
}

void ObjectRestore::create() {
  for (const auto& [id, object] : by_id_) create_one(*object);
}

void ObjectRestore::create_one(const pb::MemoryObject& object) {
  Made& made = made_[object.id()];
  if (object.kind() == pb::MemoryObject::SHM_FILE && runs(object)) {
    made.fd = files_.open(object.path(), O_RDONLY | O_NOFOLLOW);
    if (made.fd && holds_saved_content(object, made.fd.get())) return;
    made.fd.reset();
  }
  const bool named = object.kind() == pb::MemoryObject::SHM_FILE || object.kind() == pb::MemoryObject::MAPPED_FILE;
  if (dry_ && named) return create_stand_in(object, made);
  switch (object.kind()) {
    case pb::MemoryObject::SYSV:
      fill_segment(object);
      return;
    case pb::MemoryObject::ANON_SHARED:
      made.fd = anonymous_shared(object.size());
      break;
    case pb::MemoryObject::MEMFD:
      made.fd.reset(::memfd_create(object.path().substr(0, 240).c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
      if (!made.fd) throw_errno("cannot make a memfd");
      if (::fchown(made.fd.get(), files_.identity().uid, files_.identity().gid) != 0) {
        throw_errno("cannot set the owner of a memfd");
      }
      break;
    case pb::MemoryObject::DELETED_FILE:
      create_deleted(object, made);
      break;
    case pb::MemoryObject::SHM_FILE:
      create_shm(object, made);
      break;
    default:
      create_mapped(object, made);
  }
  if (!made.late) fill_file(object, made.fd.get());
  if (runs(object)) keep_readable_only(object, made);
}

// Whether it is the program of a process.
bool ObjectRestore::runs(const pb::MemoryObject& object) const {
  if (object.kind() == pb::MemoryObject::SYSV) return false;
  return std::any_of(capsule_.processes().begin(), capsule_.processes().end(), [&](const pb::Process& process) {
    return process.memory().exe().ino() == object.ino() && process.memory().exe().dev() == object.dev();
  });
}

// A file that is open for writing cannot be a program (prctl(PR_SET_MM_MAP): EACCES), nor can a program be written to,
// so nobody needs it otherwise.
void ObjectRestore::keep_readable_only(const pb::MemoryObject& object, Made& made) {
  UniqueFd readable(::open(fmt::format("/proc/self/fd/{}", made.fd.get()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!readable) throw_errno("cannot open the program {} again", describe(object));
  made.fd = std::move(readable);
}

// A file in /dev/shm that is still what it was: what it holds is compared, since a copy that was put there after a
// reboot is another file.
bool ObjectRestore::holds_saved_content(const pb::MemoryObject& object, int fd) const {
  struct stat status {};
  if (::fstat(fd, &status) != 0 || static_cast<uint64_t>(status.st_size) != object.size()) return false;
  bool same = true;
  std::vector<std::byte> have;
  for_each_saved(version_, object, [&](uint64_t offset, std::span<const std::byte> want) {
    have.resize(want.size());
    same = same &&
           ::pread(fd, have.data(), have.size(), static_cast<off_t>(offset)) == static_cast<ssize_t>(have.size()) &&
           std::memcmp(have.data(), want.data(), want.size()) == 0;
  });
  return same;
}

// Open to its owner until apply_side_effects(), so that it can be opened again for whoever had it.
void ObjectRestore::create_deleted(const pb::MemoryObject& object, Made& made) {
  const std::string directory = directory_of(object.path());
  const mode_t mode = runs(object) ? 0700 : 0600;
  made.fd = files_.open(directory, O_TMPFILE | O_RDWR, mode);
  if (made.fd) return;
  // Nothing can be made there by the user, as where packages lie.
  made.fd.reset(::memfd_create(object.path().substr(directory.size(), 240).c_str(), MFD_CLOEXEC));
  if (!made.fd || ::fchown(made.fd.get(), files_.identity().uid, files_.identity().gid) != 0 ||
      ::fchmod(made.fd.get(), mode) != 0) {
    throw_errno("cannot make the deleted file {} again", object.path());
  }
}

// Whether the image has all that the file held.
bool ObjectRestore::is_whole(const pb::MemoryObject& object) const {
  const std::vector<Range> parts = windows(object);
  return object.size() == 0 || (parts.size() == 1 && parts[0].start == 0 && parts[0].end >= object.size());
}

// File systems give numbers of removed files to new ones. Not asked of network file systems, whose clocks may be wrong.
bool ObjectRestore::made_later(int fd) const {
  struct statx status {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &status) != 0 || (status.stx_mask & STATX_BTIME) == 0) return false;
  return status.stx_dev_major != 0 && nanoseconds({status.stx_btime.tv_sec, status.stx_btime.tv_nsec}) >
                                          static_cast<int64_t>(version_.manifest().taken_unix_ns());
}

// A file that the job itself has made since, as a journal is that comes and goes: the one of the version is in the
// image.
bool ObjectRestore::may_put_aside(const pb::MemoryObject& object, int fd, const struct stat& now) const {
  return is_whole(object) && now.st_uid == files_.identity().uid && made_later(fd);
}

// It comes back should the restart fail.
void ObjectRestore::put_aside(const std::string& path, Made& made) {
  const std::string aside = path + ".after-checkpoint";
  if (files_.rename(path, aside) != 0) throw_errno("cannot put {} aside", path);
  made.aside = aside;
  spdlog::info("{} was made after the checkpoint: it is {} now", path, aside);
}

// A file that was mapped for writing, or saved whole, by whatever name of its directory. None, with errno, when it is
// gone, and what has its name now may be put aside. Another file of that name must not be written to. Changes nothing.
UniqueFd ObjectRestore::find_mapped(const pb::MemoryObject& object) const {
  // Closing a file that was open for writing is seen by who watches it.
  const int flags = dry_ ? O_RDONLY : O_RDWR;
  UniqueFd fd = files_.open(object.path(), flags);
  const int error = errno;
  struct stat now {};
  if (fd && ::fstat(fd.get(), &now) == 0) {
    // Moved to another file system, or a network file system that was mounted anew: another number says nothing.
    const bool other_system = now.st_dev != object.dev() && now.st_ino != object.ino();
    const bool same = now.st_ino == object.ino() && (now.st_dev != object.dev() || !made_later(fd.get()));
    if (same || other_system || object.ino() == 0) return fd;
  } else if (error != ENOENT) {
    errno = error;
    return {};
  }
  struct stat wanted {};
  wanted.st_dev = static_cast<dev_t>(object.dev());
  wanted.st_ino = object.ino();
  const std::string directory = directory_of(object.path());
  for (const std::string& name : files_.names(directory, wanted)) {
    UniqueFd other = files_.open(directory + name, flags);
    if (other && made_later(other.get())) continue;
    spdlog::info("{} is {} now: that one is gone on with", object.path(), directory + name);
    return other;
  }
  if (fd && !may_put_aside(object, fd.get(), now)) {
    throw Error(ErrorKind::kImage,
                fmt::format("{} is another file than at the checkpoint, and that one is gone", object.path()), 0,
                "move it away");
  }
  errno = ENOENT;
  return {};
}

void ObjectRestore::create_mapped(const pb::MemoryObject& object, Made& made) {
  made.late = true;
  made.fd = find_mapped(object);
  if (!made.fd && errno == ENOENT && is_whole(object)) {
    const std::string& path = object.path();
    const UniqueFd newer = files_.open(path, O_PATH | O_NOFOLLOW);
    struct stat now {};
    if (newer && ::fstat(newer.get(), &now) == 0 && S_ISREG(now.st_mode) && may_put_aside(object, newer.get(), now))
      put_aside(path, made);
    for (size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1))
      if (files_.make_directory(path.substr(0, slash)) == 0) made.directories.push_back(path.substr(0, slash));
    made.fd = files_.open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    if (!made.fd) throw_errno("cannot make {} again", path);
    made.names.push_back(path);
    spdlog::info("{}, which was in use at the checkpoint, is gone: made again from the image", path);
    if (::ftruncate(made.fd.get(), static_cast<off_t>(object.size())) != 0) throw_errno("cannot resize {}", path);
  }
  if (!made.fd) throw_errno("cannot open {} for writing", object.path());
  struct stat status {};
  if (::fstat(made.fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
    throw_error(ErrorKind::kImage, "{} is not a regular file any more", object.path());
  }
}

// What the object's own file would come to hold, in one without a name: the file is the running job's.
void ObjectRestore::create_stand_in(const pb::MemoryObject& object, Made& made) {
  if (object.kind() == pb::MemoryObject::MAPPED_FILE) {
    made.remade = !find_mapped(object);
    if (made.remade && (errno != ENOENT || !is_whole(object))) throw_errno("cannot open {} for writing", object.path());
  } else {
    for (const std::string& name : names_of(object)) {
      const UniqueFd there = files_.open(name, O_PATH | O_NOFOLLOW);
      if (there && !runs(object) && !is_object(there.get(), object))
        check_replaceable(there.get(), name, files_.identity());
    }
  }
  made.fd.reset(::memfd_create(last_name_of(object.path()).substr(0, 240).c_str(), MFD_CLOEXEC));
  if (!made.fd || ::fchown(made.fd.get(), files_.identity().uid, files_.identity().gid) != 0 ||
      ::fchmod(made.fd.get(), runs(object) ? 0700 : 0600) != 0) {
    throw_errno("cannot stand in for {}", object.path());
  }
  fill_file(object, made.fd.get());
  if (runs(object)) keep_readable_only(object, made);
}

std::set<std::pair<uint64_t, uint64_t>> ObjectRestore::remade() const {
  std::set<std::pair<uint64_t, uint64_t>> inodes;
  for (const auto& [id, made] : made_) {
    const pb::MemoryObject& object = *by_id_.at(id);
    if (object.kind() == pb::MemoryObject::MAPPED_FILE && (made.remade || !made.names.empty()))
      inodes.emplace(object.dev(), object.ino());
  }
  return inodes;
}

// The object itself if one of its names still leads to it, else a new one. All its names come to lead there.
void ObjectRestore::create_shm(const pb::MemoryObject& object, Made& made) {
  // A program whose name another file has by now runs on without one.
  if (runs(object) && files_.open(object.path(), O_PATH | O_NOFOLLOW)) return create_deleted(object, made);
  for (const std::string& name : names_of(object)) {
    UniqueFd fd = files_.open(name, O_RDWR | O_NOFOLLOW);
    if (!fd || !is_object(fd.get(), object)) continue;
    made.fd = std::move(fd);
    made.late = true;
    break;
  }
  for (const std::string& name : names_of(object)) give_name(object, name, made);
}

void ObjectRestore::give_name(const pb::MemoryObject& object, const std::string& path, Made& made) {
  const UniqueFd there = files_.open(path, O_PATH | O_NOFOLLOW);
  if (there && is_object(there.get(), object)) return;
  std::string free_name = path;
  if (there) {
    check_replaceable(there.get(), path, files_.identity());
    free_name = fmt::format("{}.icp-{}-{}", path, ::getpid(), object.id());
  }
  if (made.fd) {
    if (files_.link(made.fd.get(), free_name) != 0) throw_errno("cannot give {} its name again", path);
  } else {
    made.fd = files_.open(free_name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, object.mode() & 0777);
    if (!made.fd) throw_errno("cannot make {} again", path);
    ::fchmod(made.fd.get(), object.mode() & 0777);
  }
  made.names.push_back(free_name);
  if (there) made.renames[free_name] = path;
}

// An owner that the user may not give is not given: a root process's files are as they were, a user's are its own.
void ObjectRestore::set_owner_and_mode(const pb::MemoryObject& object, int fd) const {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw_errno("cannot look at {}", describe(object));
  {
    const FsIdentity as_user(files_.identity());
    if ((status.st_uid != object.uid() || status.st_gid != object.gid()) &&
        ::fchown(fd, object.uid(), object.gid()) != 0) {
      if (::fchown(fd, static_cast<uid_t>(-1), object.gid()) != 0 && files_.identity().uid == 0)
        throw_errno("cannot set the owner of {}", describe(object));
    }
    if (::fchmod(fd, object.mode()) == 0) return;
  }
  throw_errno("cannot set the mode of {}", describe(object));
}

void ObjectRestore::fill_file(const pb::MemoryObject& object, int fd) {
  if (::ftruncate(fd, static_cast<off_t>(object.size())) != 0) {
    throw_errno("cannot make {} {} bytes long", describe(object), object.size());
  }
  for_each_saved(version_, object, [&](uint64_t offset, std::span<const std::byte> bytes) {
    write_all(fd, bytes.data(), bytes.size(), offset, describe(object));
  });
}

void ObjectRestore::fill_segment(const pb::MemoryObject& object) {
  const int id = new_shmid(object);
  const std::shared_ptr<IpcAccess> own = ipc_ == nullptr ? IpcAccess::enter(current_ipc_namespace()) : nullptr;
  const SegmentMemory segment = (own ? own.get() : ipc_)->open_segment(id);
  if (page_up(segment.bytes) < object.size()) {
    throw_error(ErrorKind::kImage, "damaged image: System V segment {} is smaller than its content", object.shmid());
  }
  for_each_saved(version_, object, [&](uint64_t offset, std::span<const std::byte> bytes) {
    write_all(segment.fd.get(), bytes.data(), bytes.size(), segment.start + offset, describe(object));
  });
}

UniqueFd ObjectRestore::open(uint32_t id, uint32_t flags) const {
  const pb::MemoryObject& object = find(id);
  const auto made = made_.find(id);
  if (made == made_.end() || !made->second.fd) {
    throw_error(ErrorKind::kImage, "damaged image: memory object {} cannot be opened", id);
  }
  UniqueFd fd(::open(fmt::format("/proc/self/fd/{}", made->second.fd.get()).c_str(),
                     static_cast<int>(flags & kOpenFlags) | O_CLOEXEC));
  if (!fd) throw_errno("cannot open {} again", describe(object));
  return fd;
}

UniqueFd ObjectRestore::open_for_process(uint32_t id, uint32_t flags) {
  const auto made = made_.find(id);
  const bool first = made != made_.end() && made->second.fd && !made->second.given;
  const pb::MemoryObject& object = find(id);
  if (!first || object.kind() != pb::MemoryObject::MEMFD || (flags & O_ACCMODE) != O_RDWR || runs(object))
    return open(id, flags);
  made->second.given = true;
  UniqueFd fd(::fcntl(made->second.fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!fd || ::fcntl(fd.get(), F_SETFL, flags & (O_APPEND | O_NONBLOCK)) != 0)
    throw_errno("cannot open {} again", describe(object));
  return fd;
}

// The parts of a file that were mapped shared; only these were saved.
std::vector<Range> ObjectRestore::windows(const pb::MemoryObject& object) const {
  const bool open_whole = std::any_of(capsule_.files().begin(), capsule_.files().end(), [&](const pb::OpenFile& file) {
    return file.has_regular() && file.regular().object() == object.id();
  });
  const auto made = made_.find(object.id());
  const bool kept = keep_changed_ && made != made_.end() && made->second.names.empty();
  if ((open_whole && !kept) || object.kind() != pb::MemoryObject::MAPPED_FILE) return {{0, page_up(object.size())}};
  std::vector<Range> ranges;
  for (const pb::Process& process : capsule_.processes()) {
    for (const pb::Mapping& mapping : process.memory().mappings()) {
      if (mapping.object() != object.id()) continue;
      ranges.push_back({mapping.offset(), mapping.offset() + (mapping.end() - mapping.start())});
    }
  }
  normalise(ranges);
  return ranges;
}

// Pages that are right already are left alone, and so is the file's time of change then.
void ObjectRestore::overwrite_file(const pb::MemoryObject& object, int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw_errno("cannot look at {}", describe(object));
  const std::vector<Range> parts = windows(object);
  const bool smaller = static_cast<uint64_t>(status.st_size) < object.size() && !parts.empty();
  if (object.kind() == pb::MemoryObject::SHM_FILE || smaller) {
    if (::ftruncate(fd, static_cast<off_t>(object.size())) != 0) throw_errno("cannot resize {}", describe(object));
  }
  PageStoreReader reader(version_, object.index());
  std::vector<std::byte> want(kPageSize), have(kPageSize);
  for (const Range& window : parts) {
    for (uint64_t at = window.start; at < std::min(window.end, page_up(object.size())); at += kPageSize) {
      const size_t bytes = std::min<uint64_t>(kPageSize, object.size() - at);
      const PageLocation location = reader.index().find(at);
      if (location.version != 0) {
        reader.read(location, 1, want);
      } else {
        std::fill(want.begin(), want.end(), std::byte{0});
      }
      const ssize_t got = ::pread(fd, have.data(), bytes, static_cast<off_t>(at));
      if (got == static_cast<ssize_t>(bytes) && std::memcmp(have.data(), want.data(), bytes) == 0) continue;
      write_all(fd, want.data(), bytes, at, describe(object));
    }
  }
}

void ObjectRestore::add_seals(const pb::MemoryObject& object, int fd) {
  if (object.seals() == 0 || ::fcntl(fd, F_ADD_SEALS, object.seals()) == 0) return;
  throw_errno("cannot seal memfd {}", object.path());
}

void ObjectRestore::apply_side_effects() {
  for (auto& [id, made] : made_) {
    const pb::MemoryObject& object = *by_id_.at(id);
    if (made.late) overwrite_file(object, made.fd.get());
    for (const auto& [from, to] : made.renames)
      if (files_.rename(from, to) != 0) throw_errno("cannot give {} its name again", to);
    const bool here_only = object.kind() == pb::MemoryObject::DELETED_FILE ||
                           object.kind() == pb::MemoryObject::MEMFD ||
                           (object.kind() == pb::MemoryObject::MAPPED_FILE && !made.names.empty());
    if (here_only) set_owner_and_mode(object, made.fd.get());
    if (object.kind() == pb::MemoryObject::MEMFD) add_seals(object, made.fd.get());
  }
  done_ = true;
}

}  // namespace icp
