// SPDX-License-Identifier: GPL-2.0-or-later
// mpi_cost: how long MPI_Init takes, then a ping-pong of 8 bytes between ranks 0 and 1, and an allreduce of 1,000 numbers.
// Rank 0 prints "COST <init, s> <half a round trip, us> <allreduce, us>": the medians of many.
#define _GNU_SOURCE
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { TIMES = 500, COUNT = 1000 };

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static double median(double* all) {
  qsort(all, TIMES, sizeof *all, compare);
  return all[TIMES / 2];
}

int main(int argc, char** argv) {
  static double times[TIMES], mine[COUNT], sum[COUNT];
  const double begin = now();
  MPI_Init(&argc, &argv);
  const double init = now() - begin;
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  double token = 0;
  for (int i = 0; i < TIMES; i++) {
    const double sent = now();
    if (rank == 0) MPI_Send(&token, 1, MPI_DOUBLE, 1, 0, MPI_COMM_WORLD);
    if (rank < 2) MPI_Recv(&token, 1, MPI_DOUBLE, 1 - rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (rank == 1) MPI_Send(&token, 1, MPI_DOUBLE, 0, 0, MPI_COMM_WORLD);
    times[i] = (now() - sent) / 2;
  }
  const double half = median(times);
  for (int i = 0; i < TIMES; i++) {
    const double sent = now();
    MPI_Allreduce(mine, sum, COUNT, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    times[i] = now() - sent;
  }
  const double reduce = median(times);
  if (rank == 0) printf("COST %.6f %.3f %.3f\n", init, half * 1e6, reduce * 1e6);
  MPI_Finalize();
  return 0;
}
