// SPDX-License-Identifier: GPL-2.0-or-later
// bandwidth FILE MIB: the machine's limits, as one line of JSON, in bytes a second. The file is written with write(2)
// in pieces of 1 MiB, first into the page cache, then flushed; read back warm; memory is copied between two touched
// areas.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 1 << 20 };

static void fail(const char* what) {
  fprintf(stderr, "bandwidth: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static char* touched(size_t bytes, int value) {
  char* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("mmap");
  memset(memory, value, bytes);
  return memory;
}

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: bandwidth FILE MIB\n");
    return 2;
  }
  const size_t chunks = (size_t)strtoul(argv[2], NULL, 10), bytes = chunks * CHUNK;
  char *from = touched(bytes, 1), *to = touched(bytes, 2);

  double begin = now();
  memcpy(to, from, bytes);
  const double copied = now() - begin;

  int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (fd < 0) fail(argv[1]);
  begin = now();
  for (size_t i = 0; i < chunks; i++)
    if (write(fd, to + i * CHUNK, CHUNK) != CHUNK) fail("write");
  const double written = now() - begin;
  if (fsync(fd) != 0) fail("fsync");
  const double flushed = now() - begin;

  begin = now();
  for (size_t i = 0; i < chunks; i++)
    if (pread(fd, from, CHUNK, (off_t)(i * CHUNK)) != CHUNK) fail("read");
  const double read_back = now() - begin;

  begin = now();
  munmap(from, bytes);
  from = touched(bytes, 3);
  const double first_touch = now() - begin;
  unlink(argv[1]);
  const double size = (double)bytes;
  printf(
      "{\"bytes\": %zu, \"memcpy\": %.0f, \"write\": %.0f, \"write_flushed\": %.0f, \"read\": %.0f, \"touch\": %.0f}\n",
      bytes, size / copied, size / written, size / flushed, size / read_back, size / first_touch);
  return 0;
}
