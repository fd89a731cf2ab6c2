// SPDX-License-Identifier: GPL-2.0-or-later
// floor MIB PERCENT ROUNDS: the least that a stop can cost without pre-copy. A child rewrites PERCENT of its MIB each
// round, at random; it is interrupted, its written pages are found and protected again (PAGEMAP_SCAN), read
// (process_vm_readv, into memory touched before), and it goes on. One line of JSON: the median stop, in seconds, and
// the pages of the last. The scan asks for every page's state, as one must that does not know which are there.
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// include/uapi/linux/fs.h and userfaultfd.h of Linux 6.7, which Debian 12's headers are too old for.
struct region {
  uint64_t start, end, categories;
};
struct scan {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, any_of, returned;
};
#define SCAN _IOWR('f', 16, struct scan)
enum { WP_MATCHING = 1, CHECK_WP_ASYNC = 2, WRITTEN = 2, PRESENT = 8, SWAPPED = 16 };
enum { WP_UNPOPULATED = 1 << 13, WP_ASYNC = 1 << 15, USER_MODE_ONLY = 1 };
// REGIONS: more than 512, and the kernel's walk_end can lie before what it has already given out.
enum { PAGE = 4096, REGIONS = 512, MOST_ROUNDS = 1000 };

struct child {
  pid_t pid;
  int pagemap, go, done;
  char* memory;
  size_t bytes;
};

static void fail(const char* what) {
  fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

// The child: registers its memory, then writes a round for each byte it reads.
static void __attribute__((noreturn)) write_rounds(char* memory, size_t bytes, size_t count, int go, int done) {
  const int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY);
  struct uffdio_api api = {.api = UFFD_API, .features = WP_ASYNC | WP_UNPOPULATED};
  struct uffdio_register all = {.range = {(uintptr_t)memory, bytes}, .mode = UFFDIO_REGISTER_MODE_WP};
  if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0 || ioctl(uffd, UFFDIO_REGISTER, &all) != 0) fail("userfaultfd");
  uint64_t draw = 1;
  char byte = 0;
  while (write(done, &byte, 1) == 1 && read(go, &byte, 1) == 1) {
    for (size_t i = 0; i < count; i++) {
      draw = draw * 6364136223846793005u + 1442695040888963407u;
      memory[(draw >> 20) % (bytes / PAGE) * PAGE]++;
    }
  }
  _exit(0);
}

static void wait_for_round(const struct child* child) {
  char byte;
  if (read(child->done, &byte, 1) != 1) fail("the child has ended");
}

static void read_pages(pid_t pid, struct iovec* local, struct iovec* remote, size_t regions) {
  enum { AT_ONCE = 256 };
  for (size_t at = 0; at < regions; at += AT_ONCE) {
    const size_t number = regions - at < AT_ONCE ? regions - at : AT_ONCE;
    if (process_vm_readv(pid, local + at, number, remote + at, number, 0) <= 0) fail("process_vm_readv");
  }
}

// Finds, protects and reads what was written; how many pages.
static size_t collect(const struct child* child, char* staging) {
  static struct region found[REGIONS];
  static struct iovec local[REGIONS], remote[REGIONS];
  const uint64_t end = (uintptr_t)child->memory + child->bytes;
  size_t used = 0;
  for (uint64_t at = (uintptr_t)child->memory; at < end;) {
    struct scan scan = {.size = sizeof scan, .flags = WP_MATCHING | CHECK_WP_ASYNC, .start = at, .end = end,
                        .vec = (uintptr_t)found, .vec_len = REGIONS, .any_of = PRESENT | SWAPPED, .returned = WRITTEN};
    const int count = ioctl(child->pagemap, SCAN, &scan);
    if (count < 0) fail("PAGEMAP_SCAN");
    size_t regions = 0;
    for (int i = 0; i < count; i++) {
      if ((found[i].categories & WRITTEN) == 0) continue;
      const size_t bytes = found[i].end - found[i].start;
      local[regions] = (struct iovec){staging + used, bytes};
      remote[regions++] = (struct iovec){(void*)(uintptr_t)found[i].start, bytes};
      used += bytes;
    }
    read_pages(child->pid, local, remote, regions);
    at = count == REGIONS ? found[REGIONS - 1].end : end;
  }
  return used / PAGE;
}

static int by_size(const void* left, const void* right) {
  const double a = *(const double*)left, b = *(const double*)right;
  return (a > b) - (a < b);
}

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: floor MIB PERCENT ROUNDS\n");
    return 2;
  }
  struct child child = {.bytes = strtoul(argv[1], NULL, 10) << 20};
  const size_t count = (size_t)((double)(child.bytes / PAGE) * strtod(argv[2], NULL) / 100);
  const size_t rounds = strtoul(argv[3], NULL, 10);
  if (child.bytes == 0 || rounds == 0 || rounds > MOST_ROUNDS) return 2;
  child.memory = mmap(NULL, child.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char* staging = mmap(NULL, child.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (child.memory == MAP_FAILED || staging == MAP_FAILED) fail("mmap");
  memset(staging, 1, (count + 1) * PAGE);
  int go[2], done[2];
  if (pipe(go) != 0 || pipe(done) != 0) fail("pipe");

  child.pid = fork();
  if (child.pid < 0) fail("fork");
  if (child.pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    memset(child.memory, 7, child.bytes);
    write_rounds(child.memory, child.bytes, count, go[0], done[1]);
  }
  child.go = go[1];
  child.done = done[0];
  char name[64];
  snprintf(name, sizeof name, "/proc/%d/pagemap", child.pid);
  if ((child.pagemap = open(name, O_RDONLY | O_CLOEXEC)) < 0) fail(name);
  if (ptrace(PTRACE_SEIZE, child.pid, 0, 0) != 0) fail("ptrace");
  wait_for_round(&child);
  // The first round finds all pages: for the protection, not for reading.
  struct scan arm = {.size = sizeof arm, .flags = WP_MATCHING | CHECK_WP_ASYNC, .start = (uintptr_t)child.memory,
                     .end = (uintptr_t)child.memory + child.bytes, .mask = WRITTEN, .returned = WRITTEN};
  if (ioctl(child.pagemap, SCAN, &arm) < 0) fail("PAGEMAP_SCAN");

  static double stops[MOST_ROUNDS];
  size_t pages = 0;
  for (size_t i = 0; i < rounds; i++) {
    if (write(child.go, "", 1) != 1) fail("the child has ended");
    wait_for_round(&child);
    int status;
    const double begin = now();
    if (ptrace(PTRACE_INTERRUPT, child.pid, 0, 0) != 0 || waitpid(child.pid, &status, __WALL) < 0) fail("ptrace");
    pages = collect(&child, staging);
    if (ptrace(PTRACE_CONT, child.pid, 0, 0) != 0) fail("ptrace");
    stops[i] = now() - begin;
  }
  qsort(stops, rounds, sizeof *stops, by_size);
  printf("{\"stop_s\": %.6f, \"pages\": %zu}\n", stops[rounds / 2], pages);
  return 0;
}
