// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/shm.h"

#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/sysinfo.h>

#include <cerrno>
#include <utility>

#include "engine/base/error.h"
#include "engine/sysv/ipc_create.h"
#include "engine/sysv/ipc_identity.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

// Segments may be bigger than what is ever touched of them, so their sum may exceed the memory, but not absurdly.
constexpr uint64_t kOvercommit = 4;

uint64_t memory_and_swap() {
  struct sysinfo info {};
  if (::sysinfo(&info) != 0) throw_errno("cannot read the size of the memory");
  return (static_cast<uint64_t>(info.totalram) + info.totalswap) * info.mem_unit;
}

}  // namespace

AttachedSegment::AttachedSegment(int shmid, bool writable) {
  shmid_ds info{};
  if (::shmctl(shmid, IPC_STAT, &info) != 0) throw_errno("cannot look at System V segment {}", shmid);
  void* const start = ::shmat(shmid, nullptr, writable ? 0 : SHM_RDONLY);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): shmat's own error value
  if (start == reinterpret_cast<void*>(-1)) throw_errno("cannot attach System V segment {}", shmid);
  bytes_ = {static_cast<std::byte*>(start), info.shm_segsz};
}

AttachedSegment::~AttachedSegment() {
  if (!bytes_.empty()) ::shmdt(bytes_.data());
}

AttachedSegment::AttachedSegment(AttachedSegment&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

bool capture_segment(const IpcObject& object, pb::ShmSegment& segment) {
  shmid_ds info{};
  if (::shmctl(object.id, IPC_STAT, &info) != 0) {
    if (errno == EINVAL || errno == EIDRM) return false;
    throw_errno("cannot look at {}", describe(object));
  }
  capture_perm(object, info.shm_perm.__seq, *segment.mutable_perm());
  segment.set_size(info.shm_segsz);
  segment.set_removed((info.shm_perm.mode & SHM_DEST) != 0);
  segment.set_locked((info.shm_perm.mode & SHM_LOCKED) != 0);
  segment.set_creator_pid(static_cast<uint32_t>(object.creator));
  return true;
}

void check_segments(const pb::SysvIpc& state, const IpcLimits& limits) {
  PermCheck perms(IpcKind::kShm);
  const uint64_t memory = memory_and_swap();
  uint64_t total = 0;
  uint64_t pages = 0;
  if (static_cast<uint64_t>(state.segments_size()) > limits.shm_count) {
    throw_error(ErrorKind::kImage, "the image has {} System V segments; this host allows {} (kernel.shmmni)",
                state.segments_size(), limits.shm_count);
  }
  for (const pb::ShmSegment& segment : state.segments()) {
    perms.check(segment.perm());
    const std::string name = in_image(IpcKind::kShm, segment.perm());
    const uint64_t size = segment.size();
    if (size == 0) throw_error(ErrorKind::kImage, "{}: its size is 0", name);
    if (size > limits.shm_max_bytes) {
      throw_error(ErrorKind::kImage, "{}: {} bytes are more than this host allows (kernel.shmmax {})", name, size,
                  limits.shm_max_bytes);
    }
    // Before the sum, which therefore cannot overflow.
    if (size > kOvercommit * memory || (total += size) > kOvercommit * memory) {
      throw_error(ErrorKind::kImage, "{}: with its {} bytes the segments are larger than this host's memory", name,
                  size);
    }
    pages += page_up(size) / kPageSize;
    if (pages > limits.shm_all_pages) {
      throw_error(ErrorKind::kImage, "{}: with its {} bytes the segments exceed this host's kernel.shmall of {} pages",
                  name, size, limits.shm_all_pages);
    }
  }
}

int create_segment(const pb::ShmSegment& segment, uid_t uid, gid_t gid) {
  // Removal takes the key away (ipc/shm.c, do_shm_rmid), whatever the image says.
  const key_t key = segment.removed() ? IPC_PRIVATE : segment.perm().key();
  const int flags = IPC_CREAT | IPC_EXCL | static_cast<int>(segment.perm().mode());
  const int id = create_with_id(IpcKind::kShm, segment.perm(), uid, gid, [&] {
    const int got = ::shmget(key, segment.size(), flags);
    // One that was made with SHM_NORESERVE may be larger than what the kernel would promise; the flag cannot be
    // read back. The failed call has not used up the requested id.
    return got < 0 && errno == ENOMEM ? ::shmget(key, segment.size(), flags | SHM_NORESERVE) : got;
  });
  if (segment.locked()) {
    // With the user's rights: an image must not lock more memory than RLIMIT_MEMLOCK lets it. Not being able to is no
    // reason to give the restart up.
    const IpcIdentity identity(uid, gid);
    static_cast<void>(::shmctl(id, SHM_LOCK, nullptr));
  }
  return id;
}

}  // namespace icp
