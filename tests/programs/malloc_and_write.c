/* SPDX-License-Identifier: GPL-2.0-or-later */
/* malloc_and_write: allocates memory, then rewrites a share of its pages every round.
 *
 * The first program of the incremental checkpoint's measurements. The memory is
 * private and anonymous unless told otherwise, and its content does not
 * compress. Which pages a round writes, and with what, depends on the seed and
 * the round alone.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

#include "common.h"

enum { PAGE = 4096, WORDS = PAGE / 8 };

static const char usage[] =
    "usage: malloc_and_write [options]\n"
    "  --mib S             memory, MiB (64)\n"
    "  --percent F         pages rewritten per round, percent of all (1)\n"
    "  --rounds N          rounds (10)\n"
    "  --round-ms T        pause after each round, milliseconds (0)\n"
    "  --seed K            (1)\n"
    "  --shared KIND       shared memory: anonymous, memfd, memfd-open, posix, sysv\n"
    "  --progress-file P   one line per round appended to P\n";

struct options {
  double mib, percent, round_ms;
  long rounds;
  uint64_t seed;
  const char *shared, *progress_file;
};

static struct options parse(int argc, char** argv) {
  static const struct option table[] = {
      {"mib", 1, 0, 'm'},  {"percent", 1, 0, 'f'},  {"rounds", 1, 0, 'n'},
      {"seed", 1, 0, 's'}, {"round-ms", 1, 0, 't'}, {"progress-file", 1, 0, 'p'},
      {"help", 0, 0, 'h'}, {"shared", 1, 0, 'k'},   {0},
  };
  struct options o = {.mib = 64, .percent = 1, .rounds = 10, .seed = 1};
  int c;

  while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
    switch (c) {
      case 'm':
        o.mib = number("mib", optarg, 0.0078125, 1 << 24);
        break;
      case 'f':
        o.percent = number("percent", optarg, 0, 100);
        break;
      case 'n':
        o.rounds = (long)number("rounds", optarg, 0, 1e12);
        break;
      case 't':
        o.round_ms = number("round-ms", optarg, 0, 1e9);
        break;
      case 's':
        o.seed = (uint64_t)number("seed", optarg, 0, 1e15);
        break;
      case 'k':
        o.shared = optarg;
        break;
      case 'p':
        o.progress_file = optarg;
        break;
      case 'h':
        fputs(usage, stdout);
        exit(0);
      default:
        fputs(usage, stderr);
        exit(2);
    }
  }
  return o;
}

static void fill_page(unsigned char* page, uint64_t seed) {
  uint64_t word;

  for (int i = 0; i < WORDS; i++) {
    word = mix(seed + (uint64_t)i);
    memcpy(page + i * 8, &word, sizeof word);
  }
}

/* Rewrite `count` different pages, chosen at random. `chosen` has a bit a page. */
static void write_round(unsigned char* memory, size_t pages, size_t count, uint64_t seed, unsigned char* chosen) {
  uint64_t draw = seed;

  memset(chosen, 0, pages / 8 + 1);
  for (size_t done = 0; done < count;) {
    size_t page = mix(draw++) % pages;

    /* Past a run of taken pages: the next free one. Else nearly full rounds never end. */
    while (chosen[page / 8] & (1 << page % 8)) page = (page + 1) % pages;
    chosen[page / 8] |= (unsigned char)(1 << page % 8);
    fill_page(memory + page * PAGE, mix(seed ^ page << 20));
    done++;
  }
}

static void progress(const struct options* o, long round, size_t written) {
  printf("round %ld of %ld: %zu pages written\n", round, o->rounds, written);
  fflush(stdout);
  if (o->progress_file != NULL) {
    FILE* file = fopen(o->progress_file, "a");

    if (file == NULL) die("%s", o->progress_file);
    fprintf(file, "round %ld\n", round);
    fclose(file);
  }
}

/* Without a name that would outlive the process; `-open` keeps the descriptor. */
static void* map_memory(const char* shared, size_t bytes) {
  const char* path = "/dev/shm/malloc_and_write";
  void* memory;
  int fd = -1, id;

  if (shared == NULL) return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (strcmp(shared, "anonymous") == 0)
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (strcmp(shared, "sysv") == 0) {
    id = shmget(IPC_PRIVATE, bytes, 0600);
    memory = shmat(id, NULL, 0);
    shmctl(id, IPC_RMID, NULL);
    return memory;
  }
  if (strncmp(shared, "memfd", 5) == 0) {
    fd = memfd_create("malloc_and_write", MFD_CLOEXEC);
  } else if (strcmp(shared, "posix") == 0) {
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    unlink(path);
  } else {
    fputs(usage, stderr);
    exit(2);
  }
  if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) return MAP_FAILED;
  memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (strcmp(shared, "memfd-open") != 0) close(fd);
  return memory;
}

int main(int argc, char** argv) {
  struct options o = parse(argc, argv);
  size_t pages = (size_t)(o.mib * (1 << 20) / PAGE);
  size_t count = (size_t)((double)pages * o.percent / 100);
  unsigned char* memory = map_memory(o.shared, pages * PAGE);
  unsigned char* chosen = malloc(pages / 8 + 1);
  uint64_t hash = 0;

  if (memory == MAP_FAILED || chosen == NULL) die("%zu MiB of memory", pages * PAGE >> 20);
  for (size_t page = 0; page < pages; page++) fill_page(memory + page * PAGE, mix(o.seed) + page * WORDS);
  progress(&o, 0, pages);
  for (long round = 1; round <= o.rounds; round++) {
    write_round(memory, pages, count, mix(o.seed + (uint64_t)round), chosen);
    progress(&o, round, count);
    sleep_ms(o.round_ms);
  }
  for (size_t page = 0; page < pages; page++) hash += mix(hash_words(page, memory + page * PAGE, WORDS));
  printf("RESULT malloc_and_write pages=%zu rounds=%ld hash=%016llx\n", pages, o.rounds, (unsigned long long)hash);
  return 0;
}
