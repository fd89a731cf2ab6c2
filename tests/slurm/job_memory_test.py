# SPDX-License-Identifier: GPL-2.0-or-later
"""What the agent of a step is: a process of the user, whose memory, and that of what it restores, is the step's."""

import os
import pathlib
import pwd
import unittest

import harness
import leftovers
import slurmconf
from jobcase import JobCase

MEMORY = pathlib.Path("/sys/fs/cgroup/memory")
MIB = 200
CHECKPOINT_RESTORE = 1 << 40
# Shared memory that no file has, written once.
HOLDS = ["perl", "-e", "$| = 1; my $fd = syscall(319, my $name = 'held', 0); open my $f, '+<&=', $fd or die; binmode $f; "
         f"print $f 'x' x (1 << 20) for 1 .. {MIB}; $f->flush; print qq(ready\\n); while (1) {{ select undef, undef, undef, 0.1 }}"]


@unittest.skipUnless(os.access(MEMORY / "memory.usage_in_bytes", os.W_OK), "needs the memory cgroups of version 1")
class Memory(JobCase):
    options = {"task_plugin": "task/cgroup",
               "conf_files": {"cgroup.conf": slurmconf.cgroup_conf() + "ConstrainRAMSpace=yes\n"}}

    def group_of(self, pid):
        """The memory cgroup of a process."""
        lines = leftovers.read(f"/proc/{pid}/cgroup").decode().splitlines()
        return next((line.split(":", 2)[2] for line in lines if ":memory:" in line), "")

    def is_the_users(self, pid):
        text = leftovers.read(f"/proc/{pid}/status").decode()
        status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        user = pwd.getpwnam(self.cluster.user)
        self.assertEqual((status["Uid"].split(), status["Gid"].split()), ([str(user.pw_uid)] * 4, [str(user.pw_gid)] * 4))
        caps = [int(status[f"Cap{which}"], 16) for which in ("Prm", "Eff", "Amb")]
        self.assertEqual(caps, [CHECKPOINT_RESTORE, CHECKPOINT_RESTORE, 0])
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"))

    def step_usage(self, job):
        groups = list(MEMORY.glob(f"slurm*/uid_*/job_{job}/step_0"))
        return int((groups[0] / "memory.usage_in_bytes").read_text()) >> 20 if groups else 0

    def test_a_step_pays_for_what_it_gets_back(self):
        srun, job = self.start_srun("--checkpoint-interval=1s", "--checkpoint-dir=images", *HOLDS)
        self.wait_text("srun.out", "ready", timeout=40)
        self.wait_versions(f"images/{job}.0", 1)
        agents = self.agents()
        self.assertTrue(agents)
        for pid in agents:
            self.assertRegex(self.group_of(pid), rf"/job_{job}/step_0$")
            self.is_the_users(pid)
        self.assertGreaterEqual(self.step_usage(job), MIB)
        self.sh(["scancel", str(job)])
        srun.wait(30)
        self.wait_clean()
        srun, again = self.start_srun(f"--restart-dir=images/{job}.0", "none", output="again.out")
        self.wait_for(lambda: self.step_usage(again) >= MIB, 60, "the restored memory to be the step's")
        self.sh(["scancel", str(again)])
        srun.wait(30)
        self.wait_clean()


if __name__ == "__main__":
    harness.main()
