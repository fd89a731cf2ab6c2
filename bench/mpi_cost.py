#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the relays of PMI and PMIx cost an MPI program, and what the stop of many ranks takes.

    bench/mpi_cost.py [--rounds N] [--ranks N] [--build DIR] [--only MPI ...]

MPI_Init, a ping-pong and an allreduce of two ranks on one node, on a private cluster with spank_icp.so in its plug stack and
on one without, in turn: the medians, and the medians of the pairs' ratios. Then versions of so many ranks, which sleep, on
one node: how long each stopped them. Not beside another cluster with jobs under --mpi=pmix, whose directories in /tmp go by
the number of the job. Needs root, and MPICH or Open MPI.
"""

import argparse
import contextlib
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests" / "cluster"))
from cluster import Cluster  # noqa: E402

COMPILERS = {"pmi2": "mpicc.mpich", "pmix": "mpicc.openmpi"}


@contextlib.contextmanager
def cluster(**options):
    state = tempfile.mkdtemp(prefix="icp-bench-", dir="/var/tmp")
    try:
        up = Cluster(state, **options)
        up.own_names = True
        up.icp_config = f"log: {up.log_dir}/icpstepd.log\nmin_interval: 0.1s\n"
        with up:
            yield up
    finally:
        shutil.rmtree(state, ignore_errors=True)


def compile_in(up, mpi):
    for name in ("mpi_cost", "mpi_ways"):
        up.run([COMPILERS[mpi], "-O2", "-o", up.work / f"{name}.{mpi}", TOP / "tests" / "programs" / f"{name}.c"], timeout=120)


def costs(up, mpi):
    """(seconds of MPI_Init, microseconds of half a round trip, of an allreduce)"""
    run = up.run(["srun", f"--mpi={mpi}", "-n2", f"./mpi_cost.{mpi}"], user=up.user, timeout=120)
    found = re.search(r"COST (\S+) (\S+) (\S+)", run.stdout)
    if not found:
        sys.exit(f"srun --mpi={mpi} says no costs: {run.stdout}{run.stderr}")
    return [float(word) for word in found.groups()]


def stops(up, mpi, ranks, versions=6):
    """Milliseconds that versions stopped so many sleeping ranks for, the first one apart."""
    (up.work / "go").unlink(missing_ok=True)
    log = up.log_dir / "icpstepd.log"
    before = len(log.read_text()) if log.exists() else 0
    child = up.popen(["srun", "-O", f"--mpi={mpi}", f"-n{ranks}", "--checkpoint-interval=2s", f"./mpi_ways.{mpi}", "nothing"], user=up.user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def found():
        text = log.read_text()[before:] if log.exists() else ""
        return [float(ms) for ms in re.findall(r"version \d+\b.*stopped ([0-9.]+) ms", text)]
    until = time.monotonic() + 240
    while len(found()) < versions and time.monotonic() < until and child.poll() is None:
        time.sleep(0.5)
    (up.work / "go").touch()
    child.wait(120)
    return found()


def main():
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--rounds", type=int, default=15)
    given.add_argument("--ranks", type=int, default=64)
    given.add_argument("--build", type=pathlib.Path, default=TOP / "build" / "release")
    given.add_argument("--only", nargs="+", choices=COMPILERS, default=[mpi for mpi in COMPILERS if shutil.which(COMPILERS[mpi])])
    options = given.parse_args()
    programs = [options.build / "coordinator" / name for name in ("icp", "icpstepd", "icp-proxy", "icp-init")]
    with cluster() as plain, cluster(plugin=options.build / "spank" / "spank_icp.so", install=programs) as ours:
        for mpi in options.only:
            for up in (plain, ours):
                compile_in(up, mpi)
                costs(up, mpi)  # warms up
            pairs = [(costs(plain, mpi), costs(ours, mpi)) for _ in range(options.rounds)]
            for at, (what, unit) in enumerate((("MPI_Init", "s"), ("ping-pong", "us"), ("allreduce", "us"))):
                a, b = (statistics.median(pair[which][at] for pair in pairs) for which in (0, 1))
                ratio = statistics.median(pair[1][at] / pair[0][at] for pair in pairs)
                print(f"--mpi={mpi}, {what}: without {a:.4g} {unit}, with {b:.4g} {unit}, median ratio of {options.rounds} pairs "
                      f"{ratio:.3f}", flush=True)
            taken = stops(ours, mpi, options.ranks)
            print(f"--mpi={mpi}, {options.ranks} ranks on one node, stops (ms): {' '.join(f'{ms:.1f}' for ms in taken)}", flush=True)


if __name__ == "__main__":
    main()
