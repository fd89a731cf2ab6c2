// SPDX-License-Identifier: GPL-2.0-or-later
// allreduce [--rounds N] [--step-ms T] [--count N]: an MPI program that calculates the same numbers however often it is
// interrupted.
//
// In each round every rank contributes a vector that depends on its rank, the round and the last sum, and the sum over
// all ranks is folded into a hash; neighbours also pass a token around. Rank 0 prints "ROUND n" now and then, and at
// the end "RESULT allreduce ranks=R rounds=N hash=H". Exit: 0, 2 wrong arguments, 3 wrong numbers.
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15ull + (hash << 6) + (hash >> 2);
  return hash * 0xff51afd7ed558ccdull;
}

static long option(int argc, char** argv, const char* name, long value) {
  for (int i = 1; i + 1 < argc; i += 2)
    if (strcmp(argv[i], name) == 0) value = strtol(argv[i + 1], NULL, 10);
  return value;
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank, size;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const long rounds = option(argc, argv, "--rounds", 100), step_ms = option(argc, argv, "--step-ms", 0),
             count = option(argc, argv, "--count", 1000);
  if (rounds < 1 || step_ms < 0 || count < 1) return 2;
  uint64_t* mine = malloc(sizeof *mine * (size_t)count);
  uint64_t* sum = calloc((size_t)count, sizeof *sum);
  uint64_t hash = 1;
  for (long round = 0; round < rounds; round++) {
    for (long i = 0; i < count; i++) mine[i] = mix(sum[i] + (uint64_t)i, (uint64_t)(rank + 1) * (uint64_t)(round + 1));
    MPI_Allreduce(mine, sum, (int)count, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
    uint64_t token = hash + (uint64_t)rank, from_left = 0;
    MPI_Sendrecv(&token, 1, MPI_UINT64_T, (rank + 1) % size, 0, &from_left, 1, MPI_UINT64_T, (rank + size - 1) % size,
                 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (from_left != hash + (uint64_t)((rank + size - 1) % size)) {
      fprintf(stderr, "allreduce: rank %d: wrong token in round %ld\n", rank, round);
      MPI_Abort(MPI_COMM_WORLD, 3);
    }
    for (long i = 0; i < count; i++) hash = mix(hash, sum[i]);
    if (rank == 0 && round % 10 == 0) {
      printf("ROUND %ld\n", round);
      fflush(stdout);
    }
    if (step_ms > 0) usleep((useconds_t)step_ms * 1000);
  }
  if (rank == 0) {
    printf("RESULT allreduce ranks=%d rounds=%ld hash=%016llx\n", size, rounds, (unsigned long long)hash);
    fflush(stdout);
  }
  MPI_Finalize();
  free(mine);
  free(sum);
  return 0;
}
