#!/usr/bin/env -S python3 -B
# SPDX-License-Identifier: GPL-2.0-or-later
"""Many jobs at once under icpctld, each with a version every few seconds; then nothing may be left, and every job must
be restartable.

    tests/soak/many_jobs.py [--jobs 200] [--seconds 600] [--interval 10] [--sample 200]

Needs root and a build (ICP_BUILD_DIR, default build/release). Prints a table of what icpctld and the agents used over
time, and the outcome; exit 0 when all is well. docs/reliability.md has the last result.
"""

import argparse
import os
import pathlib
import random
import re
import signal
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("ICP_BUILD_DIR", str(ROOT / "build" / "release"))
sys.path[:0] = [str(ROOT / "tests" / "slurm"), str(ROOT / "tests" / "cluster")]

import harness  # noqa: E402  (needs the path above)
import leftovers  # noqa: E402
from coordinated import Coordinated  # noqa: E402

# Counts, changes memory, and has a System V segment of the same key as all others, which it never removes.
PROGRAM = ("use IPC::SysV qw(IPC_CREAT); $| = 1; my $id = shmget(4711, 65536, 0600 | IPC_CREAT); defined $id or die; "
           "my @a = map { $_ } 1 .. 2000; my $n = 0; while (1) { $a[rand @a] = $n++; shmwrite($id, $n, $n % 16 * 4096, 8); "
           "print qq($n\\n); select undef, undef, undef, 0.5 }")
AT_ONCE = 20  # starts and restarts


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--interval", type=int, default=10, help="seconds between a job's versions")
    parser.add_argument("--sample", type=int, default=200, help="how many jobs are restarted at the end")
    return parser.parse_args()


def usage_of(pid):
    """(resident KiB, descriptors) of a process; (0, 0) when it has ended."""
    found = re.search(rb"VmRSS:\s+(\d+)", leftovers.read(f"/proc/{pid}/status"))
    try:
        return (int(found[1]) if found else 0), len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0, 0


def namespaces():
    """How many namespaces of any kind processes are in."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found |= {os.readlink(f"/proc/{entry}/ns/{kind}") for kind in ("ipc", "pid", "mnt", "net", "uts", "user")}
            except OSError:
                pass
    return len(found)


class Soak(Coordinated):
    # Hundreds of slurmstepds that start on two cores make Slurm's own messages late.
    options = {"nodes": 2, "coordinator": True, "cpus": 400, "debug": "info", "extra_conf": "MessageTimeout=90\n"}
    config = "max_writers: 4\n"

    @classmethod
    def icp_lines(cls, config):
        return super().icp_lines(config).replace("log_level: debug", "log_level: warning")

    def machine(self):
        """What may leak on the machine: {name: how many}."""
        names = self.cluster.node_names
        return {"mounts": len(leftovers.read("/proc/self/mountinfo").splitlines()), "namespaces": namespaces(),
                "cgroups": len(leftovers.job_cgroups(names)),
                "segments": len(self.cluster.ipc_objects()),
                "agents": sum(1 for _ in self.agents()), "descriptors of icpctld": usage_of(self.icpctld)[1]}

    def agents(self):
        return [pid for pid in leftovers.processes(self.cluster.node_names)
                if leftovers.read(f"/proc/{pid}/comm").strip() == b"icpstepd"]

    @property
    def icpctld(self):
        return self.cluster.pids["icpctld"][0]

    def start_jobs(self):
        options = self.arguments
        script = self.work / "job.sh"
        script.write_text(f"#!/bin/bash\nexec perl -e '{PROGRAM}'\n")
        begin = time.monotonic()
        jobs = []
        for i in range(options.jobs):
            if i % AT_ONCE == 0:  # no faster than they start
                self.wait_for(lambda: all(self.versions(f"{job}.batch") for job in jobs), 300, f"versions of {i} jobs")
            shown = self.sh(["sbatch", "--parsable", "-o", "job-%j.out", f"--checkpoint-interval={options.interval}s",
                             "--mem=10", script])
            jobs.append(int(shown.stdout.split(";")[0]))
        self.wait_for(lambda: all(self.versions(f"{job}.batch") for job in jobs), 300,
                      "a version of each job")
        print(f"{len(jobs)} jobs, each with a version, after {time.monotonic() - begin:.0f} s", flush=True)
        return jobs

    def watch(self, jobs):
        """The load for so many seconds. Fails when anything grows."""
        options = self.arguments
        print(f"{'seconds':>8} {'versions':>9} {'/s':>6} {'icpctld KiB':>12} {'fds':>5} {'agent KiB':>10} {'fds':>5}")
        begin, first, before = time.monotonic(), None, sum(len(self.versions(f"{job}.batch")) for job in jobs)
        start = before
        while time.monotonic() - begin < options.seconds:
            time.sleep(min(60, options.seconds / 5))
            resident, descriptors = usage_of(self.icpctld)
            agents = [usage_of(pid) for pid in self.agents()]
            self.assertEqual(len(agents), len(jobs))
            row = (resident, descriptors, statistics.median(a[0] for a in agents), max(a[1] for a in agents))
            first = first or row
            count, passed = sum(len(self.versions(f"{job}.batch")) for job in jobs), time.monotonic() - begin
            print(f"{passed:8.0f} {count:9} {(count - start) / passed:6.1f} {row[0]:12} {row[1]:5} {row[2]:10.0f} "
                  f"{row[3]:5}", flush=True)
        self.assertLess(row[0], first[0] + 20000, "icpctld grows")
        self.assertLess(row[1], first[1] + 20, "icpctld loses descriptors")
        self.assertLess(row[2], first[2] * 1.1 + 2048, "agents grow")
        self.assertLessEqual(row[3], first[3] + 4, "agents lose descriptors")

    def restart(self, jobs):
        """Each goes on behind the number it had in its last version, and not before its first."""
        script = self.work / "again.sh"
        for at in range(0, len(jobs), AT_ONCE):
            some = {}
            for job in jobs[at:at + AT_ONCE]:
                script.write_text(f"#!/bin/bash\nsrun --restart-dir={job}.batch none\n")
                shown = self.sh(["sbatch", "--parsable", "-o", "again-%j.out", "--mem=10", script])
                some[job] = int(shown.stdout.split(";")[0])
            for job, again in some.items():
                number = self.wait_text(f"again-{again}.out", r"restarted from version \d+ of .*\n(\d+)\n", timeout=120)
                last = int(re.findall(r"^\d+$", self.text(f"job-{job}.out"), re.M)[-1])
                self.assertTrue(0 < int(number[1]) <= last + 1, (job, number[1], last))
            self.sh(["scancel", *[str(again) for again in some.values()]])
            self.wait_for(lambda: not self._queue(), 120, "the restarted jobs to end")

    def runTest(self):
        options = self.arguments
        before = self.machine()
        jobs = self.start_jobs()
        self.watch(jobs)
        last = {job: self.versions(f"{job}.batch")[-1] for job in jobs}
        # SIGKILL, as of a node that dies: a version taken between scancel's SIGTERM and its effect holds that SIGTERM.
        self.sh(["scancel", "--full", "--signal=KILL", *[str(job) for job in jobs]])
        self.wait_for(lambda: not self._queue(), 240, "the jobs to end")
        self.wait_clean()
        print(f"{sum(last.values())} versions of {len(jobs)} jobs; every image is looked at", flush=True)
        for job in jobs:
            self.sh(["icp", "verify", f"{job}.batch"], user="root", timeout=120)
        sample = random.Random(1).sample(jobs, min(options.sample, len(jobs)))
        self.restart(sample)
        print(f"{len(jobs)} images verified, {len(sample)} jobs restarted", flush=True)
        self.wait_clean()
        self.wait_for(lambda: all(self.machine()[name] <= count for name, count in before.items()), 30,
                      f"nothing to be left: {before} before, {self.machine()} now")
        print(f"before: {before}\nafter:  {self.machine()}")


if __name__ == "__main__":
    Soak.arguments = arguments()
    sys.argv[1:] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    harness.unittest.main(verbosity=2)
