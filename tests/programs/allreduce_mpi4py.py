#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""allreduce in Python: --rounds N --step-ms T [--count N]. Arrays are summed over all ranks, objects go around in a ring and
are gathered; the same numbers however often it is interrupted. Lines as those of allreduce.c."""
import argparse
import sys
import time

import numpy
from mpi4py import MPI

MASK = (1 << 64) - 1


def mix(value, other):
    value = (value ^ (other + 0x9E3779B97F4A7C15 + (value << 6) + (value >> 2))) & MASK
    return value * 0xFF51AFD7ED558CCD & MASK


parser = argparse.ArgumentParser()
for name, default in (("--rounds", 100), ("--step-ms", 0), ("--count", 1000)):
    parser.add_argument(name, type=int, default=default)
options = parser.parse_args()
world = MPI.COMM_WORLD
rank, size = world.Get_rank(), world.Get_size()
half = world.Split(rank % 2, rank)  # a communicator of its own comes back, too
total = numpy.zeros(options.count, dtype=numpy.uint64)
steps = numpy.arange(options.count, dtype=numpy.uint64)
value = 1
for number in range(options.rounds):
    mine = (total + steps) * numpy.uint64(2 * (rank + 1) * (number + 1) + 1)
    world.Allreduce(mine, total, op=MPI.SUM)
    token = {"round": number, "from": rank, "text": f"{value:016x}"}
    got = world.sendrecv(token, dest=(rank + 1) % size, source=(rank - 1) % size)
    if got != {"round": number, "from": (rank - 1) % size, "text": f"{value:016x}"}:
        print(f"allreduce: rank {rank}: wrong token in round {number}: {got}", file=sys.stderr)
        world.Abort(3)
    members = world.allreduce(half.allreduce(rank + 1))
    for one in world.allgather(int(total[rank::size].sum(dtype=numpy.uint64))) + [members]:
        value = mix(value, one)
    if rank == 0 and number % 10 == 0:
        print(f"ROUND {number}", flush=True)
    time.sleep(options.step_ms / 1000)
if rank == 0:
    print(f"RESULT allreduce ranks={size} rounds={options.rounds} hash={value:016x}", flush=True)
