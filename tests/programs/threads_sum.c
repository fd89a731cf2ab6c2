/* SPDX-License-Identifier: GPL-2.0-or-later */
/* threads_sum: threads that sum in thread-local storage and meet every round.
 *
 * Three ways of waiting are used in turn: a condition variable, a bare futex that
 * hands a token from thread to thread, and nanosleep with an absolute deadline.
 */
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"

enum { MOST_THREADS = 64, CELLS = 8192 };

static const char usage[] =
    "usage: threads_sum [options]\n"
    "  --threads N    besides the first (4)\n"
    "  --rounds N     (100)\n"
    "  --round-ms T   pause in each round, milliseconds (0)\n";

static long rounds = 100;
static unsigned threads = 4;
static double round_ms;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static unsigned waiting;
static long generation;
static uint64_t total;
static _Atomic uint32_t token;

static _Thread_local uint64_t sum;
static _Thread_local uint64_t cells[CELLS];
static _Thread_local double series;

/* A barrier of mutex and condition variable; every thread adds its sum at it. */
static void meet(void) {
  pthread_mutex_lock(&lock);
  long mine = generation;

  total += mix(sum);
  if (++waiting == threads) {
    waiting = 0;
    generation++;
    pthread_cond_broadcast(&turned);
  }
  while (generation == mine) pthread_cond_wait(&turned, &lock);
  pthread_mutex_unlock(&lock);
}

/* Wait for the token to be mine, then hand it to the next thread. */
static void pass_token(unsigned me) {
  uint32_t now;

  while ((now = atomic_load(&token)) % threads != me)
    syscall(SYS_futex, &token, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
  sum = mix(sum ^ now);
  atomic_store(&token, now + 1);
  syscall(SYS_futex, &token, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void pause_round(void) {
  struct timespec until;

  clock_gettime(CLOCK_MONOTONIC, &until);
  uint64_t ns = (uint64_t)until.tv_nsec + (uint64_t)(round_ms * 1e6);

  until.tv_sec += (time_t)(ns / 1000000000);
  until.tv_nsec = (long)(ns % 1000000000);
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
    ;
}

static void* run(void* argument) {
  unsigned me = (unsigned)(uintptr_t)argument;

  for (long round = 1; round <= rounds; round++) {
    for (int i = 0; i < CELLS; i++) {
      cells[i] += mix((uint64_t)round << 32 ^ (uint64_t)me << 20 ^ (uint64_t)i);
      series += 1.0 / (double)(cells[i] >> 40 | 1);
    }
    sum = hash_words(sum ^ me, cells, CELLS);
    pass_token(me);
    if (round_ms > 0) pause_round();
    meet();
    if (me == 0 && (round % 10 == 0 || round == rounds)) {
      printf("round %ld of %ld\n", round, rounds);
      fflush(stdout);
    }
  }
  pthread_mutex_lock(&lock);
  total += hash_words(me, &series, 1);
  pthread_mutex_unlock(&lock);
  return NULL;
}

int main(int argc, char** argv) {
  static const struct option table[] = {
      {"threads", 1, 0, 'T'}, {"rounds", 1, 0, 'n'}, {"round-ms", 1, 0, 't'}, {"help", 0, 0, 'h'}, {0},
  };
  pthread_t others[MOST_THREADS];
  int c;

  while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
    switch (c) {
      case 'T':
        threads = (unsigned)number("threads", optarg, 0, MOST_THREADS);
        break;
      case 'n':
        rounds = (long)number("rounds", optarg, 1, 1e12);
        break;
      case 't':
        round_ms = number("round-ms", optarg, 0, 1e9);
        break;
      case 'h':
        fputs(usage, stdout);
        return 0;
      default:
        fputs(usage, stderr);
        return 2;
    }
  }
  threads++; /* the first one works, too */
  for (unsigned i = 1; i < threads; i++) {
    errno = pthread_create(&others[i - 1], NULL, run, (void*)(uintptr_t)i);
    if (errno != 0) die("pthread_create");
  }
  run(NULL);
  for (unsigned i = 1; i < threads; i++) pthread_join(others[i - 1], NULL);
  printf("RESULT threads_sum threads=%u rounds=%ld hash=%016llx\n", threads, rounds, (unsigned long long)total);
  return 0;
}
