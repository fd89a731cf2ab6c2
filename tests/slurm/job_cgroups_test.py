# SPDX-License-Identifier: GPL-2.0-or-later
"""Where restored processes are in Slurm's control groups."""

import unittest

import harness
import leftovers
from jobcase import JobCase

# A task with a child; neither ends by itself.
FAMILY = ["bash", "-c", "sleep 600 & wait"]


def memory_group(pid):
    for line in leftovers.read(f"/proc/{pid}/cgroup").decode().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return path
    return ""


class TaskGroups(JobCase):
    """jobacct_gather/cgroup: each task has a group of its own, in which its memory is counted."""

    @classmethod
    def configure(cls):
        if not (leftovers.CGROUP_ROOT / "memory" / "cgroup.procs").exists():
            raise unittest.SkipTest("no memory hierarchy of version 1 here")
        super().configure()
        cls.cluster.extra_conf = "JobAcctGatherType=jobacct_gather/cgroup\n"

    def groups(self, job):
        """{(rank, program): last part of its memory group}, without our own."""
        found = {}
        for pid in self.step_pids(job):
            environment = leftovers.read(f"/proc/{pid}/environ").split(b"\0")
            rank = next((int(word[13:]) for word in environment if word.startswith(b"SLURM_PROCID=")), None)
            name = leftovers.read(f"/proc/{pid}/comm").decode().strip()
            if rank is not None:
                found[rank, name] = memory_group(pid).rpartition("/")[2]
        return found

    def test_each_process_is_in_its_tasks_group(self):
        wanted = {(rank, name): f"task_{rank}" for rank in (0, 1) for name in ("bash", "sleep")}
        srun, job = self.start_srun("-n2", "--checkpoint-interval=1s", *FAMILY)
        self.wait_versions(f"{job}.0", 2)
        self.assertEqual(self.groups(job), wanted)
        self.kill_step_tasks(job)
        srun.wait(30)
        again, second = self.start_srun("-n2", f"--restart-dir={job}.0", "none", output="second.out")
        self.wait_text("second.out", "restarted from version")
        self.assertEqual(self.groups(second), wanted)
        self.cluster.run(["scancel", second])
        again.wait(30)


if __name__ == "__main__":
    harness.main()
