#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What scontrol's front end costs: Slurm's own scontrol, and the same line through the front end, in turn.

Brings up a private cluster; prints, for some lines, the medians and the median of the pairs' ratios: of the time that
passed, and of processor time, which other load on the machine disturbs less. Needs root.
    bench/scontrol_cost.py [--rounds N] [--build DIR]
"""

import argparse
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests" / "cluster"))
from cluster import Cluster  # noqa: E402

LINES = (["show", "partition"], ["show", "hostnames", "n[1-9]"], ["--version"])


def cost(program, words, environment):
    """(seconds that passed, seconds of processor time) of one call."""
    with open(os.devnull, "wb") as null:
        begin = time.perf_counter()
        pid = os.posix_spawn(program, ["scontrol", *words], environment,
                             file_actions=[(os.POSIX_SPAWN_DUP2, null.fileno(), 1)])
        _, status, usage = os.wait4(pid, 0)
        passed = time.perf_counter() - begin
    if status != 0:
        raise SystemExit(f"{program} {' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
    return passed, usage.ru_utime + usage.ru_stime


def pairs(real, front_end, words, environment, rounds):
    """[(without, with)], in an order that changes with each pair."""
    found = []
    for i in range(rounds):
        order = (real, front_end) if i % 2 else (front_end, real)
        times = {program: cost(program, words, environment) for program in order}
        found.append((times[real], times[front_end]))
    return found


def main():
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--rounds", type=int, default=200)
    given.add_argument("--build", type=pathlib.Path, default=TOP / "build" / "release")
    options = given.parse_args()
    front_end = str(options.build / "coordinator" / "scontrol")
    real = shutil.which("scontrol", path=os.defpath + ":/usr/bin")
    state = tempfile.mkdtemp(prefix="icp-bench-", dir="/var/tmp")
    try:
        with Cluster(state) as cluster:
            for words in LINES:
                pairs(real, front_end, words, cluster.env(), 5)
                found = pairs(real, front_end, words, cluster.env(), options.rounds)
                for i, what in enumerate(("passed", "of processor time")):
                    without, ours = (statistics.median(both[i] for both in column) * 1000 for column in zip(*found))
                    ratio = statistics.median(b[i] / a[i] for a, b in found)
                    print(f"scontrol {' '.join(words)}, {options.rounds} pairs, ms {what}: alone {without:.2f}, "
                          f"through the front end {ours:.2f}, median ratio {ratio:.3f}")
    finally:
        shutil.rmtree(state, ignore_errors=True)


if __name__ == "__main__":
    main()
