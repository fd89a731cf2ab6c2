// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/sem_undo.h"

#include <linux/kcmp.h>
#include <sys/ipc.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "engine/base/error.h"
#include "engine/sysv/ipc_namespace.h"
#include "engine/sysv/semaphore.h"
#include "engine/sysv/sysv_ipc.h"

namespace icp {
namespace {

constexpr int kMax = kSemaphoreMax;
constexpr size_t kTestOperations = 7;    // of append_test()
constexpr size_t kMostOperations = 120;  // in one call; keeps the scratch memory small
constexpr int kAttempts = 20;

// Adds an operation; one that adds 0 would mean "wait for zero" and is left out.
void add(std::vector<sembuf>& operations, unsigned index, int change, int flags = 0) {
  if (change == 0) return;
  operations.push_back(
      {static_cast<unsigned short>(index), static_cast<short>(change), static_cast<short>(flags | IPC_NOWAIT)});
}

// Out of range (ERANGE) unless the adjustment is 0. Leaves the value at its maximum.
void append_test(std::vector<sembuf>& operations, unsigned index, int value) {
  add(operations, index, kMax - value);
  add(operations, index, -kMax, SEM_UNDO);  // adjustment + 32767: above the bound if it was positive
  add(operations, index, kMax, SEM_UNDO);
  add(operations, index, -kMax);
  add(operations, index, kMax, SEM_UNDO);
  add(operations, index, -1);
  add(operations, index, 1, SEM_UNDO);  // adjustment - 32768: below the bound if it was negative
}

class UndoFinder {
 public:
  UndoFinder(int semid, size_t semaphores, size_t max_operations, const SemopCall& semop, const SemValuesCall& values)
      : semid_(semid),
        count_(semaphores),
        batch_(std::max<size_t>(1, (std::min(max_operations, kMostOperations) - 1) / kTestOperations)),
        semop_(semop),
        values_(values) {}

  std::vector<int> find() {
    std::vector<int> adjust(count_, 0);
    for (size_t first = 0; first < count_ && accessible_; first += batch_) {
      const size_t last = std::min(first + batch_, count_);
      if (!any_in(first, last)) continue;
      for (size_t i = first; i < last && accessible_; ++i) adjust[i] = one(static_cast<unsigned>(i));
    }
    if (!accessible_) std::fill(adjust.begin(), adjust.end(), 0);
    return adjust;
  }

 private:
  // Of all semaphores; zeros when the set is gone, or may not be read.
  std::vector<uint16_t> values() {
    std::vector<uint16_t> all(count_);
    const int64_t result = values_(semid_, all);
    if (result == -EINVAL || result == -EIDRM || result == -EACCES) accessible_ = false;
    if (result < 0 && accessible_) {
      throw Error(
          ErrorKind::kSystem,
          fmt::format("cannot read System V semaphore set {}: {}", semid_, errno_text(static_cast<int>(-result))),
          static_cast<int>(-result));
    }
    return all;
  }

  // True for ERANGE. The operations must be such that they cannot succeed.
  bool out_of_range(const std::vector<sembuf>& operations) {
    const int64_t result = semop_(semid_, operations);
    if (result == -ERANGE) return true;
    if (result == -EAGAIN) return false;
    // No right to change the set, hence no adjustments from it (but from before its mode was changed).
    if (result == -EACCES || result == -EINVAL || result == -EIDRM) {
      accessible_ = false;
      return false;
    }
    throw Error(ErrorKind::kSystem,
                fmt::format("cannot find the undo values of System V semaphore set {}: {}", semid_,
                            errno_text(static_cast<int>(-result))),
                static_cast<int>(-result));
  }

  bool any_in(size_t first, size_t last) {
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      const std::vector<uint16_t> before = values();
      std::vector<sembuf> operations;
      for (size_t i = first; i < last; ++i) append_test(operations, static_cast<unsigned>(i), before[i]);
      // Waits for zero with a value that is at its maximum: EAGAIN.
      operations.push_back({static_cast<unsigned short>(first), 0, IPC_NOWAIT});
      const bool found = accessible_ && out_of_range(operations);
      if (!accessible_) return false;
      const std::vector<uint16_t> after = values();
      if (std::equal(before.begin() + static_cast<ptrdiff_t>(first), before.begin() + static_cast<ptrdiff_t>(last),
                     after.begin() + static_cast<ptrdiff_t>(first)))
        return found;
    }
    throw_busy();
  }

  int one(unsigned index) {
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      const int before = values()[index];
      const int adjust = any_in(index, index + 1) ? search(index, before) : 0;
      if (!accessible_) return 0;
      if (values()[index] == before) return adjust;
    }
    throw_busy();
  }

  // The adjustment, known not to be 0.
  int search(unsigned index, int value) {
    const bool positive = at_least(index, value, 1);
    // Largest magnitude whose test holds; 1 needs no further proof.
    int low = 1;
    int high = positive ? kMax : kMax + 1;
    while (low < high) {
      const int middle = low + (high - low + 1) / 2;
      if (positive ? at_least(index, value, middle) : at_most(index, value, -middle)) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return positive ? low : -low;
  }

  // adjustment >= bound, bound 1..32767
  bool at_least(unsigned index, int value, int bound) {
    std::vector<sembuf> operations;
    add(operations, index, kMax - value);
    add(operations, index, -(kMax + 1 - bound), SEM_UNDO);
    add(operations, index, -kMax);  // below zero: EAGAIN
    return out_of_range(operations);
  }

  // adjustment <= bound, bound -32768..-2
  bool at_most(unsigned index, int value, int bound) {
    std::vector<sembuf> operations;
    add(operations, index, -value);
    add(operations, index, kMax + 2 + bound, SEM_UNDO);
    operations.push_back({static_cast<unsigned short>(index), 0, IPC_NOWAIT});  // not zero now: EAGAIN
    return out_of_range(operations);
  }

  [[noreturn]] void throw_busy() const {
    throw_error(ErrorKind::kBusy,
                "the values of System V semaphore set {} keep changing: a process outside the job uses it", semid_);
  }

  int semid_;
  size_t count_, batch_;
  const SemopCall& semop_;
  const SemValuesCall& values_;
  bool accessible_ = true;
};

SemopCall semop_in(RemoteProcess& remote) {
  return [&remote](int semid, std::span<const sembuf> operations) {
    remote.reset_scratch();
    const RemoteAddr at = remote.stage(std::as_bytes(operations));
    return remote.syscall(SYS_semop, {static_cast<uint64_t>(semid), at.value, operations.size()});
  };
}

SemValuesCall values_in(RemoteProcess& remote) {
  return [&remote](int semid, std::span<uint16_t> values) {
    remote.reset_scratch();
    const RemoteAddr at = remote.reserve(values.size_bytes());
    const int64_t result = remote.syscall(SYS_semctl, {static_cast<uint64_t>(semid), 0, GETALL, at.value});
    if (result >= 0) remote.read(at, std::as_writable_bytes(values));
    return result;
  };
}

// Processes made with CLONE_SYSVSEM (rare outside threads) have one list together. Without kcmp, none do.
bool same_undo_list(pid_t a, pid_t b) { return ::syscall(SYS_kcmp, a, b, KCMP_SYSVSEM, 0, 0) == 0; }

}  // namespace

std::vector<int> find_undo(int semid, size_t semaphores, size_t max_operations, const SemopCall& semop,
                           const SemValuesCall& values) {
  return UndoFinder(semid, semaphores, max_operations, semop, values).find();
}

std::vector<sembuf> undo_operations(unsigned index, int value, int adjust) {
  std::vector<sembuf> operations;
  while (adjust != 0) {
    // The operation with SEM_UNDO adds -part, a plain one takes it back. The order is the one that has more room
    // within 0..32767, at least half of it, so this takes three turns at most.
    const int down = value;
    const int up = kMax - value;
    const int part = std::clamp(adjust, -std::max(down, up), std::max(down, up));
    const bool undo_first = part > 0 ? down >= up : up >= down;
    if (undo_first) add(operations, index, -part, SEM_UNDO);
    add(operations, index, part);
    if (!undo_first) add(operations, index, -part, SEM_UNDO);
    adjust -= part;
  }
  return operations;
}

void capture_sem_undo(std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states,
                      const pb::SysvIpc& state) {
  if (state.semaphores().empty()) return;
  const size_t max_operations = IpcLimits::read().sem_ops;
  std::vector<pid_t> owners;  // of lists that hold something
  for (size_t i = 0; i < processes.size(); ++i) {
    if (!processes[i].remote) continue;
    RemoteProcess& remote = *processes[i].remote;
    const SemopCall semop = semop_in(remote);
    const SemValuesCall values = values_in(remote);
    states[i]->clear_sem_undo();
    for (const pb::SemaphoreSet& set : state.semaphores()) {
      const std::vector<int> adjust =
          find_undo(set.perm().id(), static_cast<size_t>(set.values_size()), max_operations, semop, values);
      for (size_t index = 0; index < adjust.size(); ++index) {
        if (adjust[index] == 0) continue;
        pb::SemUndo& undo = *states[i]->add_sem_undo();
        undo.set_semid(set.perm().id());
        undo.set_index(static_cast<uint32_t>(index));
        undo.set_adjust(adjust[index]);
      }
    }
    remote.reset_scratch();
    if (states[i]->sem_undo().empty()) continue;
    const pid_t pid = remote.pid();
    if (std::any_of(owners.begin(), owners.end(), [&](pid_t other) { return same_undo_list(pid, other); })) {
      states[i]->clear_sem_undo();  // counted once, with the first of them
    } else {
      owners.push_back(pid);
    }
  }
}

void restore_sem_undo(RemoteProcess& remote, const pb::Process& process, const RestoredSysv& restored) {
  for (const pb::SemUndo& undo : process.sem_undo()) {
    const int id = restored.sem_id(undo.semid());
    const int64_t got = remote.syscall(SYS_semctl, {static_cast<uint64_t>(id), undo.index(), GETVAL, 0});
    if (got < 0) {
      throw Error(ErrorKind::kSystem,
                  fmt::format("process {}: cannot read semaphore {} of System V set {}: {}", process.pid(),
                              undo.index(), id, errno_text(static_cast<int>(-got))),
                  static_cast<int>(-got));
    }
    const int value = static_cast<int>(got);
    const std::vector<sembuf> operations = undo_operations(undo.index(), value, undo.adjust());
    if (operations.empty()) continue;
    const int64_t result = semop_in(remote)(id, operations);
    if (result < 0) {
      throw Error(ErrorKind::kSystem,
                  fmt::format("process {}: cannot restore its undo value of semaphore {} of System V set {}: {}",
                              process.pid(), undo.index(), id, errno_text(static_cast<int>(-result))),
                  static_cast<int>(-result));
    }
  }
  remote.reset_scratch();
}

}  // namespace icp
