#!/usr/bin/env -S python3 -B
# SPDX-License-Identifier: GPL-2.0-or-later
"""Many jobs at once under icpctld, each with a version every few seconds; then nothing may be left, and every job must
be restartable.

    tests/soak/many_jobs.py [--jobs 200] [--seconds 600] [--interval 5] [--sample 10]

Needs root and a build (ICP_BUILD_DIR, default build/release). Prints a table of what icpctld used over time, and the
outcome; exit 0 when all is well. docs/reliability.md has the last result.
"""

import argparse
import os
import pathlib
import random
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("ICP_BUILD_DIR", str(ROOT / "build" / "release"))
sys.path[:0] = [str(ROOT / "tests" / "slurm"), str(ROOT / "tests" / "cluster")]

import harness  # noqa: E402  (needs the path above)
import leftovers  # noqa: E402
from coordinated import Coordinated  # noqa: E402

PROGRAM = ("$| = 1; my @a = map { $_ } 1 .. 2000; my $sum = 0; while (1) { $sum += $a[rand @a]; "
           "print qq($sum\\n) if rand() < 0.05; select undef, undef, undef, 0.2 }")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--interval", type=int, default=5, help="seconds between a job's versions")
    parser.add_argument("--sample", type=int, default=10, help="how many jobs are restarted at the end")
    return parser.parse_args()


def usage_of(pid):
    """(resident KiB, descriptors) of a process."""
    status = leftovers.read(f"/proc/{pid}/status").decode()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return resident, len(os.listdir(f"/proc/{pid}/fd"))


class Soak(Coordinated):
    options = {"nodes": 2, "coordinator": True, "cpus": 400}
    config = "min_interval: 1s\nmax_writers: 8\n"

    def runTest(self):
        options = self.arguments
        jobs = [self.submit(f"exec perl -e '{PROGRAM}'", f"--checkpoint-interval={options.interval}s", "--mem=10")
                for _ in range(options.jobs)]
        self.wait_for(lambda: all(self.versions(f"{job}.batch") for job in jobs), 60 + 2 * options.jobs,
                      "a version of each job")
        icpctld = self.cluster.pids["icpctld"][0]
        print(f"{'seconds':>8} {'versions':>9} {'RSS KiB':>8} {'fds':>5}")
        begin = time.monotonic()
        first = None
        while time.monotonic() - begin < options.seconds:
            time.sleep(min(30, options.seconds / 4))
            resident, descriptors = usage_of(icpctld)
            first = first or (resident, descriptors)
            count = sum(len(self.versions(f"{job}.batch")) for job in jobs)
            print(f"{time.monotonic() - begin:8.0f} {count:9} {resident:8} {descriptors:5}", flush=True)
        self.assertLess(resident, first[0] + 20000, "icpctld grows")
        self.assertLess(descriptors, first[1] + 20, "icpctld loses descriptors")
        last = {job: self.versions(f"{job}.batch")[-1] for job in jobs}
        self.sh(["scancel", *[str(job) for job in jobs]])
        self.wait_for(lambda: not self._queue(), 120, "the jobs to end")
        self.wait_clean()
        print(f"{sum(last.values())} versions of {len(jobs)} jobs; every image is looked at")
        for job in jobs:
            self.sh(["icp", "verify", f"{job}.batch"], user="root", timeout=120)
        for job in random.Random(1).sample(jobs, min(options.sample, len(jobs))):
            srun, again = self.start_srun(f"--restart-dir={job}.batch", "none", output="again.out")
            self.wait_text("again.out", r"\n\d+\n", timeout=60)
            self.sh(["scancel", again])
            srun.wait(60)
        self.wait_clean()


if __name__ == "__main__":
    Soak.arguments = arguments()
    sys.argv[1:] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    harness.unittest.main(verbosity=2)
