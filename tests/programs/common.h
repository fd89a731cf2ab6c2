/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the C test programs share: options, errors, hashing, sleeping.
 *
 * Every program prints progress lines and, last, one line starting with RESULT
 * that is the same on every run with the same arguments, whenever and however
 * often the run was interrupted, checkpointed and restarted.
 */
#ifndef ICP_TESTS_PROGRAMS_COMMON_H
#define ICP_TESTS_PROGRAMS_COMMON_H

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char* format, ...) {
  int error = errno;
  va_list arguments;

  va_start(arguments, format);
  fprintf(stderr, "%s: ", program_invocation_short_name);
  vfprintf(stderr, format, arguments);
  fprintf(stderr, error ? ": %s\n" : "\n", strerror(error));
  va_end(arguments);
  exit(1);
}

/* The number in `text`, which must lie in [low, high]. */
static inline double number(const char* name, const char* text, double low, double high) {
  char* end;
  double value = strtod(text, &end);

  if (end == text || *end != '\0' || !(value >= low && value <= high)) {
    errno = 0;
    die("--%s %s: a number from %g to %g is wanted", name, text, low, high);
  }
  return value;
}

/* Steele, Lea, Flood: splitmix64. One call scrambles x, and is a generator when
 * x grows by a constant. */
static inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/* A hash of `count` words; every bit and its place matter. */
static inline uint64_t hash_words(uint64_t hash, const void* data, size_t count) {
  const unsigned char* bytes = data;
  uint64_t word;

  for (size_t i = 0; i < count; i++) {
    memcpy(&word, bytes + i * sizeof word, sizeof word);
    hash = (hash ^ word) * 0xff51afd7ed558ccdULL;
    hash ^= hash >> 32;
  }
  return hash;
}

/* Sleep for so many milliseconds in all, however often a signal interrupts. */
static inline void sleep_ms(double ms) {
  struct timespec rest = {(time_t)(ms / 1000), 0};

  rest.tv_nsec = (long)((ms - (double)rest.tv_sec * 1000) * 1e6);
  while (nanosleep(&rest, &rest) != 0 && errno == EINTR)
    ;
}

/* A System V key for this run: the same in all tasks of a Slurm step, another
 * in every other step; without Slurm made from the clock. Never IPC_PRIVATE. */
static inline int default_key(void) {
  const char *job = getenv("SLURM_JOB_ID"), *step = getenv("SLURM_STEP_ID");
  struct timespec now;
  uint64_t seed;

  clock_gettime(CLOCK_REALTIME, &now);
  seed = (uint64_t)now.tv_sec << 30 ^ (uint64_t)now.tv_nsec;
  if (job != NULL && step != NULL) seed = strtoull(job, NULL, 10) << 32 | strtoull(step, NULL, 10);
  int key = (int)(mix(seed) & 0x7fffffff);

  return key ? key : 1;
}

#endif
