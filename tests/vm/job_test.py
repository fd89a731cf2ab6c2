#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""In the guest: a job under a real Slurm, saved with the kernel module as the tracker, killed, and brought back."""
import pathlib
import signal
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "slurm"))
import harness  # noqa: E402  (the path comes first)
from jobcase import JobCase  # noqa: E402

MGS = ["mgs", "--rows", "400", "--columns", "60", "--key", "77", "--seed", "7"]


class Job(JobCase):
    def test_killed_and_restarted(self):
        answer = self.sh(["srun", "-n2", *MGS], timeout=200).stdout.splitlines()[-1]
        srun, job = self.start_srun("-n2", "--checkpoint-interval=1s", *MGS, "--step-ms", "400", output="first.out")
        image = f"{job}.0"
        self.wait_versions(image, 3, timeout=150)
        self.assertGreaterEqual(self.kill_step_tasks(job), 2)
        self.assertEqual(srun.wait(100), 128 + signal.SIGKILL)
        versions = self.sh(["icp", "list", image]).stdout
        print(versions)
        lines = versions.splitlines()[1:]
        self.assertGreaterEqual(len(lines), 3)
        for number, line in enumerate(lines):
            self.assertIn("kernel-module", line)
            self.assertIn("full" if number == 0 else "incremental", line)
        result = self.sh(["srun", "-n2", f"--restart-dir={image}", "none"], timeout=200)
        self.assertEqual(result.stdout.splitlines()[-1], answer)


if __name__ == "__main__":
    harness.main()
