// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/semaphore.h"

#include <sys/ipc.h>
#include <sys/sem.h>

#include <cerrno>
#include <map>
#include <set>
#include <vector>

#include "engine/base/error.h"
#include "engine/sysv/ipc_create.h"

namespace icp {
namespace {

// semctl(2) leaves the declaration to the caller.
union semun {
  int val;
  semid_ds* buf;
  unsigned short* array;
};

bool gone(int error) { return error == EINVAL || error == EIDRM; }

void check_set(const pb::SemaphoreSet& set, const IpcLimits& limits) {
  const std::string name = in_image(IpcKind::kSem, set.perm());
  if (set.values().empty()) throw_error(ErrorKind::kImage, "{}: it has no semaphores", name);
  if (static_cast<uint64_t>(set.values_size()) > limits.sem_per_set) {
    throw_error(ErrorKind::kImage, "{}: {} semaphores are more than this host allows in a set ({}, kernel.sem)", name,
                set.values_size(), limits.sem_per_set);
  }
  for (const uint32_t value : set.values()) {
    if (value > kSemaphoreMax) {
      throw_error(ErrorKind::kImage, "{}: the value {} is above {}", name, value, kSemaphoreMax);
    }
  }
}

void check_undo(const pb::Process& process, const std::map<int, int>& sizes) {
  std::set<std::pair<int, uint32_t>> seen;
  for (const pb::SemUndo& undo : process.sem_undo()) {
    const auto size = sizes.find(undo.semid());
    if (size == sizes.end() || undo.index() >= static_cast<uint32_t>(size->second)) {
      throw_error(ErrorKind::kImage, "process {} in the image: it undoes semaphore {} of set {}, which is not there",
                  process.pid(), undo.index(), undo.semid());
    }
    if (undo.adjust() < -kSemaphoreMax - 1 || undo.adjust() > kSemaphoreMax ||
        !seen.emplace(undo.semid(), undo.index()).second) {
      throw_error(ErrorKind::kImage,
                  "process {} in the image: its adjustment {} of semaphore {} of set {} is not valid", process.pid(),
                  undo.adjust(), undo.index(), undo.semid());
    }
  }
}

}  // namespace

bool capture_semaphores(const IpcObject& object, pb::SemaphoreSet& set) {
  semid_ds info{};
  semun argument{};
  argument.buf = &info;
  if (::semctl(object.id, 0, IPC_STAT, argument) != 0) {
    if (gone(errno)) return false;
    throw_errno("cannot look at {}", describe(object));
  }
  std::vector<unsigned short> values(info.sem_nsems);
  argument.array = values.data();
  if (::semctl(object.id, 0, GETALL, argument) != 0) {
    if (gone(errno)) return false;
    throw_errno("cannot read the values of {}", describe(object));
  }
  capture_perm(object, info.sem_perm.__seq, *set.mutable_perm());
  set.mutable_values()->Assign(values.begin(), values.end());
  return true;
}

void check_semaphores(const pb::Capsule& capsule, const IpcLimits& limits) {
  PermCheck perms(IpcKind::kSem);
  const auto& sets = capsule.sysv().semaphores();
  if (static_cast<uint64_t>(sets.size()) > limits.sem_sets) {
    throw_error(ErrorKind::kImage, "the image has {} System V semaphore sets; this host allows {} (kernel.sem)",
                sets.size(), limits.sem_sets);
  }
  uint64_t total = 0;
  std::map<int, int> sizes;
  for (const pb::SemaphoreSet& set : sets) {
    perms.check(set.perm());
    check_set(set, limits);
    sizes[set.perm().id()] = set.values_size();
    total += static_cast<uint64_t>(set.values_size());
  }
  if (total > limits.sem_total) {
    throw_error(ErrorKind::kImage, "the image has {} System V semaphores; this host allows {} (kernel.sem)", total,
                limits.sem_total);
  }
  for (const pb::Process& process : capsule.processes()) check_undo(process, sizes);
}

int create_semaphores(const pb::SemaphoreSet& set, uid_t uid, gid_t gid) {
  const int id = create_with_id(IpcKind::kSem, set.perm(), uid, gid, [&] {
    return ::semget(set.perm().key(), set.values_size(), IPC_CREAT | IPC_EXCL | static_cast<int>(set.perm().mode()));
  });
  std::vector<unsigned short> values(set.values().begin(), set.values().end());
  semun argument{};
  argument.array = values.data();
  // As root again: the mode may not let its owner write.
  if (::semctl(id, 0, SETALL, argument) != 0) {
    const int saved = errno;
    ::semctl(id, 0, IPC_RMID);
    errno = saved;
    throw_errno("cannot set the values of the {}", in_image(IpcKind::kSem, set.perm()));
  }
  return id;
}

}  // namespace icp
