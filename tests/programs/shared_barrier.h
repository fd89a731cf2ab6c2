/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A sense-reversing barrier for processes, in shared memory that starts zeroed. */
#ifndef ICP_TESTS_PROGRAMS_SHARED_BARRIER_H
#define ICP_TESTS_PROGRAMS_SHARED_BARRIER_H

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

struct shared_barrier {
  _Atomic uint32_t sense;
  _Atomic uint32_t waiting;
};

enum barrier_wait { WAIT_FUTEX, WAIT_YIELD, WAIT_SLEEP };

/* Return once `parties` processes have called this. All must pass the same `how`. */
static inline void shared_barrier_wait(struct shared_barrier* b, uint32_t parties, enum barrier_wait how) {
  uint32_t sense = atomic_load(&b->sense);

  if (atomic_fetch_add(&b->waiting, 1) + 1 == parties) {
    atomic_store(&b->waiting, 0);
    atomic_store(&b->sense, !sense);
    syscall(SYS_futex, &b->sense, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    return;
  }
  while (atomic_load(&b->sense) == sense) {
    if (how == WAIT_FUTEX)
      syscall(SYS_futex, &b->sense, FUTEX_WAIT, sense, NULL, NULL, 0);
    else if (how == WAIT_YIELD)
      sched_yield();
    else
      usleep(200);
  }
}

#endif
