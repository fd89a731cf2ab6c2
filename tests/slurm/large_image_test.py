# SPDX-License-Identifier: GPL-2.0-or-later
"""Gigabytes that are all written to, and seconds until SIGKILL: what cannot be written in time is lost, the version before
is whole, and one line says how much work that was."""

import contextlib
import json
import os
import re
import shutil
import signal

import harness
from jobcase import JobCase

MIB = int(os.environ.get("ICP_TEST_LARGE_MIB", "2048"))
# Writes to all of its memory, again and again, with what no compression makes small; each round has its own number.
PROGRAM = """
import mmap, os, sys
size = int(sys.argv[1]) << 20
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
noise, round = os.urandom(1 << 20), 0
while not os.path.exists("enough"):
    round += 1
    for at in range(0, size, 1 << 20):
        memory[at:at + (1 << 20)] = noise[:-8] + round.to_bytes(8, "little")
    print("round", round, flush=True)
wrong = sum(memory[at - 8:at] != round.to_bytes(8, "little") for at in range(1 << 20, size + 1, 1 << 20))
print("end", wrong, flush=True)
"""


class Large(JobCase):
    options = {"coordinator": True}  # KillWait is 5 s, the least that Slurm knows

    def setUp(self):
        super().setUp()
        if shutil.disk_usage(self.work).free < 5 * (MIB << 20):
            self.skipTest("there is no room for the images")

    def rounds(self, job):
        return len(re.findall(r"^round \d+$", self.output(job), re.M))

    def begin(self):
        """Returns a job of which everything has been written to since its version 1."""
        (self.work / "program.py").write_text(PROGRAM)
        (self.work / "enough").unlink(missing_ok=True)
        job = self.submit(f"srun python3 program.py {MIB}; echo status $?", "--checkpoint-on=preempt", "--checkpoint-interval=1h")
        self.wait_text(f"job-{job}.out", "round 2", 120)
        self.cluster.run(["icp", "create", job, "--wait"], timeout=180)
        self.assertEqual(self.versions(f"{job}.0"), [1])
        before = self.rounds(job)
        self.wait_for(lambda: self.rounds(job) > before + 1, 60, "all to be written to again")
        return job

    def written(self, job):
        """Bytes of the image."""
        return sum(path.stat().st_size for path in (self.work / f"{job}.0").rglob("*") if path.is_file())

    def check_what_is_left(self, job):
        """In the window the version is there, and then nothing is lost, or it is not. Returns the one it went on from."""
        text = self.wait_text(f"job-{job}.out", r"restarted from version (\d+) of (.*)\n", 120)
        taken, lost = int(text.group(1)), re.search(r"; ([\d.]+) s of work after it were lost$", text.group(2))
        run = json.loads(self.cluster.run(["icp", "history", str(job), "--json"]).stdout)["runs"][0]
        print(text.group(), flush=True)
        self.assertEqual(taken == 1, lost is not None, text.group())
        self.assertEqual(run["ended_with_version"], taken == 2, run)
        self.assertAlmostEqual(run["work_lost_ms"] / 1000, float(lost.group(1)) if lost else 0, delta=3)
        self.assertEqual(self.versions(f"{job}.0"), list(range(1, taken + 1)))  # nothing half is left that looks whole
        verified = self.sh(["icp", "verify", f"{job}.0"], timeout=120)
        self.assertEqual(verified.returncode, 0, verified.stderr)
        (self.work / "enough").touch()
        self.assertEqual(self.wait_job(job, timeout=120), "COMPLETED", self.output(job))
        self.assertRegex(self.output(job), r"end 0\nstatus 0")
        return taken

    def test_in_the_window_or_not(self):
        job = self.begin()
        self.cluster.run(["scontrol", "requeue", job])
        if self.check_what_is_left(job) == 2:
            # What was written since, once, and not as often as a version does that lets the program run on.
            size = sum(path.stat().st_size for path in (self.work / f"{job}.0" / "v000002").glob("*/*"))
            self.assertLess(size, 1.2 * (MIB << 20))
        shutil.rmtree(self.work / f"{job}.0")

    def test_too_short_a_window(self):
        """A file system that stands still while the version is written."""
        job = self.begin()
        before = self.written(job)
        agents = self.agents()
        self.cluster.run(["scontrol", "requeue", job])
        self.wait_for(lambda: self.written(job) > before + (8 << 20), 20, "the version to be written")
        for pid in agents:
            with contextlib.suppress(ProcessLookupError):  # that of the batch script has gone
                os.kill(pid, signal.SIGSTOP)
        try:
            self.wait_for(lambda: not self.step_pids(job), 30, "SIGKILL to all processes")
        finally:
            for pid in agents:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self.assertEqual(self.check_what_is_left(job), 1)
        shutil.rmtree(self.work / f"{job}.0")


if __name__ == "__main__":
    harness.main()
