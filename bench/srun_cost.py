#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a job that asks for nothing pays: `srun hostname` with the plugin and without it, in turn.

Two private clusters, one with spank_icp.so in its plug stack; prints the medians and their ratio. Needs root.
    bench/srun_cost.py [--rounds N] [--build DIR]
"""

import argparse
import contextlib
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests" / "cluster"))
from cluster import Cluster  # noqa: E402


@contextlib.contextmanager
def cluster(**options):
    state = tempfile.mkdtemp(prefix="icp-bench-", dir="/var/tmp")
    try:
        with Cluster(state, **options) as up:
            yield up
    finally:
        shutil.rmtree(state, ignore_errors=True)


def seconds(up):
    begin = time.monotonic()
    up.run(["srun", "hostname"], user=up.user, timeout=60)
    return time.monotonic() - begin


def main():
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--rounds", type=int, default=20)
    given.add_argument("--build", type=pathlib.Path, default=TOP / "build" / "release")
    options = given.parse_args()
    programs = [options.build / "coordinator" / name for name in ("icp", "icpstepd", "icp-proxy", "icp-init")]
    with cluster() as plain, cluster(plugin=options.build / "spank" / "spank_icp.so", install=programs) as ours:
        for warm_up in (plain, ours):
            seconds(warm_up)
        pairs = [(seconds(plain), seconds(ours)) for _ in range(options.rounds)]
    without, with_plugin = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"srun hostname, {options.rounds} pairs: without {without * 1000:.0f} ms, with the plugin {with_plugin * 1000:.0f} ms, "
          f"median ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
