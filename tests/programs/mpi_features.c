// SPDX-License-Identifier: GPL-2.0-or-later
// mpi_features [--rounds N] [--step-ms T]: as allreduce, with what else of MPI programs use, whose results go into one
// hash: MPI-IO, a shared window, one-sided communication, sub-communicators, collectives and messages in flight across
// the pause, and two threads that send (MPI_THREAD_MULTIPLE, where the library has it). Exit: 0, 3 wrong numbers.
#include <mpi.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { COUNT = 512 };

static int rank, size;
static long pause_ms;

static uint64_t mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15ull + (hash << 6) + (hash >> 2);
  return hash * 0xff51afd7ed558ccdull;
}

static long option(int argc, char** argv, const char* name, long value) {
  for (int i = 1; i + 1 < argc; i += 2)
    if (strcmp(argv[i], name) == 0) value = strtol(argv[i + 1], NULL, 10);
  return value;
}

static void must(int right, const char* what, long round) {
  if (right) return;
  fprintf(stderr, "mpi_features: rank %d: wrong %s in round %ld\n", rank, what, round);
  MPI_Abort(MPI_COMM_WORLD, 3);
}

// Started before the pause, ended after it.
static uint64_t in_flight(uint64_t hash, long round) {
  static uint64_t out[COUNT], in[COUNT], sum[COUNT];
  for (int i = 0; i < COUNT; i++) out[i] = mix((uint64_t)(rank + 1), (uint64_t)(round * COUNT + i));
  MPI_Request all[3];
  MPI_Irecv(in, COUNT, MPI_UINT64_T, (rank + size - 1) % size, 1, MPI_COMM_WORLD, &all[0]);
  MPI_Iallreduce(out, sum, COUNT, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD, &all[1]);
  MPI_Isend(out, COUNT, MPI_UINT64_T, (rank + 1) % size, 1, MPI_COMM_WORLD, &all[2]);
  if (pause_ms > 0) usleep((useconds_t)pause_ms * 1000);
  MPI_Waitall(3, all, MPI_STATUSES_IGNORE);
  must(in[7] == mix((uint64_t)((rank + size - 1) % size + 1), (uint64_t)(round * COUNT + 7)), "message", round);
  for (int i = 0; i < COUNT; i++) hash = mix(hash, sum[i]);
  return hash;
}

static uint64_t file(MPI_File shared, uint64_t hash, long round) {
  uint64_t mine = mix(hash, (uint64_t)rank), other = 0;
  MPI_File_write_at_all(shared, (round * size + rank) * 8, &mine, 1, MPI_UINT64_T, MPI_STATUS_IGNORE);
  MPI_File_sync(shared);
  MPI_Barrier(MPI_COMM_WORLD);
  const int next = (rank + 1) % size;
  MPI_File_read_at(shared, (round * size + next) * 8, &other, 1, MPI_UINT64_T, MPI_STATUS_IGNORE);
  must(other == mix(hash, (uint64_t)next), "number in the file", round);
  return hash;
}

static uint64_t one_sided(MPI_Win window, uint64_t* mine, uint64_t hash, long round) {
  const uint64_t value = mix(hash, (uint64_t)rank);
  MPI_Win_fence(0, window);
  MPI_Put(&value, 1, MPI_UINT64_T, (rank + 1) % size, 0, 1, MPI_UINT64_T, window);
  MPI_Win_fence(0, window);
  must(mine[0] == mix(hash, (uint64_t)((rank + size - 1) % size)), "number in the window", round);
  uint64_t one = 1, before = 0;
  MPI_Win_lock(MPI_LOCK_SHARED, 0, 0, window);
  MPI_Fetch_and_op(&one, &before, MPI_UINT64_T, 0, 1, MPI_SUM, window);
  MPI_Win_unlock(0, window);
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Win_lock(MPI_LOCK_SHARED, 0, 0, window);
  MPI_Get(&before, 1, MPI_UINT64_T, 0, 1, 1, MPI_UINT64_T, window);
  MPI_Win_unlock(0, window);
  must(before == (uint64_t)((round + 1) * size), "counter", round);
  MPI_Barrier(MPI_COMM_WORLD);
  return mix(hash, before);
}

struct sender {
  MPI_Comm comm;
  uint64_t value, got;
};

static void* send_in_thread(void* given) {
  struct sender* const one = given;
  for (int i = 0; i < 8; i++) {
    uint64_t got = 0;
    MPI_Sendrecv(&one->value, 1, MPI_UINT64_T, (rank + 1) % size, i, &got, 1, MPI_UINT64_T, (rank + size - 1) % size, i,
                 one->comm, MPI_STATUS_IGNORE);
    one->got = mix(one->got, got);
  }
  return NULL;
}

static void threads(MPI_Comm* comms, int many, uint64_t hash, long round) {
  struct sender senders[2];
  pthread_t ids[2];
  for (int i = 0; i < 2; i++) {
    senders[i] = (struct sender){comms[i], mix(hash, (uint64_t)(rank * 2 + i)), 1};
    if (many) pthread_create(&ids[i], NULL, send_in_thread, &senders[i]);
    if (!many) send_in_thread(&senders[i]);
  }
  for (int i = 0; i < 2; i++) {
    if (many) pthread_join(ids[i], NULL);
    uint64_t wanted = 1;
    for (int j = 0; j < 8; j++) wanted = mix(wanted, mix(hash, (uint64_t)((rank + size - 1) % size * 2 + i)));
    must(senders[i].got == wanted, "messages of threads", round);
  }
}

int main(int argc, char** argv) {
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const long rounds = option(argc, argv, "--rounds", 40);
  pause_ms = option(argc, argv, "--step-ms", 0);
  MPI_Comm half, node, comms[2];
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  for (int i = 0; i < 2; i++) MPI_Comm_dup(MPI_COMM_WORLD, &comms[i]);
  int here = 0, here_rank = 0;
  MPI_Comm_size(node, &here);
  MPI_Comm_rank(node, &here_rank);
  uint64_t *window_memory = NULL, *shared_memory = NULL;
  MPI_Win window, shared;
  MPI_Win_allocate(2 * sizeof *window_memory, sizeof *window_memory, MPI_INFO_NULL, MPI_COMM_WORLD, &window_memory,
                   &window);
  MPI_Win_allocate_shared(sizeof *shared_memory, sizeof *shared_memory, MPI_INFO_NULL, node, &shared_memory, &shared);
  window_memory[0] = window_memory[1] = 0;
  MPI_File on_disk;
  char name[64];
  snprintf(name, sizeof name, "features.%d.dat", size);
  if (MPI_File_open(MPI_COMM_WORLD, name, MPI_MODE_CREATE | MPI_MODE_RDWR, MPI_INFO_NULL, &on_disk) != MPI_SUCCESS)
    MPI_Abort(MPI_COMM_WORLD, 3);
  uint64_t hash = 1;
  for (long round = 0; round < rounds; round++) {
    hash = in_flight(hash, round);
    hash = file(on_disk, hash, round);
    hash = one_sided(window, window_memory, hash, round);
    threads(comms, level == MPI_THREAD_MULTIPLE, hash, round);
    MPI_Win_fence(0, shared);
    *shared_memory = mix(hash, (uint64_t)here_rank);
    MPI_Win_fence(0, shared);
    MPI_Aint length;
    int unit;
    uint64_t* theirs;
    MPI_Win_shared_query(shared, (here_rank + 1) % here, &length, &unit, &theirs);
    must(*theirs == mix(hash, (uint64_t)((here_rank + 1) % here)), "number in shared memory", round);
    uint64_t part = mix(hash, (uint64_t)rank), sum = 0, both = 0;
    MPI_Allreduce(&part, &sum, 1, MPI_UINT64_T, MPI_SUM, half);
    MPI_Allreduce(&sum, &both, 1, MPI_UINT64_T, MPI_BXOR, MPI_COMM_WORLD);
    hash = mix(hash, both);
    if (rank == 0 && round % 10 == 0) printf("ROUND %ld\n", round);
    fflush(stdout);
  }
  if (rank == 0) printf("RESULT features ranks=%d rounds=%ld hash=%016llx\n", size, rounds, (unsigned long long)hash);
  fflush(stdout);
  MPI_File_close(&on_disk);
  MPI_Win_free(&shared);
  MPI_Win_free(&window);
  MPI_Finalize();
  return 0;
}
