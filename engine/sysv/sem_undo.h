// SPDX-License-Identifier: GPL-2.0-or-later
// What the kernel will add to semaphores when a process ends (semop(2), SEM_UNDO).
//
// The kernel keeps, for each process and semaphore, an adjustment ("semadj") and shows it to nobody. It can be found
// without changing anything:
//
// - An operation with SEM_UNDO lowers semadj by what it adds, and fails with ERANGE when semadj would leave
//   -32768..32767 (ipc/sem.c, perform_atomic_semop).
// - semop() of several operations does all of them or none. A call whose last operation certainly fails with EAGAIN
//   (IPC_NOWAIT) therefore changes nothing: no value, no semadj, no sempid, no time, and nobody is woken up.
// - Operations on one semaphore may follow each other in one call. So the value can be moved out of the way (+, without
//   SEM_UNDO), then semadj be pushed by k. Whether the answer is ERANGE or EAGAIN tells whether semadj was above a
//   bound that k chooses, and halving finds it in 15 calls. Most semaphores have none, which one call finds for
//   many of them together.
//
// The calls run in the stopped process, for semadj belongs to the process (to all threads made with CLONE_SYSVSEM,
// as pthread_create does). If the agent dies in between, nothing is lost: nothing was ever changed. (Giving the list
// up with unshare(CLONE_SYSVSEM) and comparing values would apply every adjustment, so a crash would release the
// locks of a living process, other steps of the job would see it happen, and values at their bounds would hide it.)
//
// If somebody outside the capsule (another step of the job) changes a value between reading and asking, the answer may
// be wrong: values are read again afterwards and the question repeated. A value that went and came back in between
// is not noticed; but then the set is not at rest, and no checkpoint of one of its users is consistent. Whatever the
// values, no such call ever succeeds, so the others are never disturbed.
#pragma once

#include <sys/sem.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace icp {

// Runs semop(2) as the process in question; 0 or -errno.
using SemopCall = std::function<int64_t(int semid, std::span<const sembuf> operations)>;

// The values of all semaphores of a set (semctl GETALL), as the process in question; 0 or -errno.
using SemValuesCall = std::function<int64_t(int semid, std::span<uint16_t> values)>;

// The adjustment of each semaphore of a set. `max_operations` is SEMOPM. All zero
// when the process may not change the set or it is gone. Throws kBusy when values would not stay still.
std::vector<int> find_undo(int semid, size_t semaphores, size_t max_operations, const SemopCall& semop,
                           const SemValuesCall& values);

// Operations for one semop() that leave a semaphore's value as it is and give an adjustment to a process that has
// none. `value` 0..32767, `adjust` -32768..32767; at most 6 operations.
std::vector<sembuf> undo_operations(unsigned index, int value, int adjust);

}  // namespace icp
