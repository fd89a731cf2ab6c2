# SPDX-License-Identifier: GPL-2.0-or-later
"""MPI under srun's own process manager: the same numbers, however often the job dies."""

import re
import unittest

import harness
from coordinated import Coordinated
from jobcase import JobCase

PROGRAM = harness.BUILD / "tests" / "programs" / "allreduce"
# Few rounds that sleep for long: ranks that wait spin, which on a busy machine takes the other ranks' processor time.
WORDS = ["allreduce", "--rounds", "40", "--step-ms", "250"]
PATIENCE = 240  # s


@unittest.skipUnless(PROGRAM.exists(), "no MPICH to build with")
class Mpi(JobCase):
    def run_through_deaths(self, ranks, environment=()):
        """Run, kill, restart with versions, kill, restart. Compare with an uninterrupted run."""
        srun = ["srun", "--mpi=pmi2", f"-n{ranks}"]
        env = ["env", *environment]
        whole = self.sh([*srun, *env, *WORDS[:-1], "0"], timeout=PATIENCE).stdout.splitlines()[-1]
        self.assertRegex(whole, rf"^RESULT allreduce ranks={ranks} rounds=40 hash=[0-9a-f]{{16}}$")
        first, job = self.start_srun(*srun[1:], "--checkpoint-interval=1s", *env, *WORDS)
        image = f"{job}.0"
        self.wait_versions(image, 2, PATIENCE)
        self.kill_step_tasks(job)
        self.assertNotEqual(first.wait(30), 0)
        second, job = self.start_srun(*srun[1:], "--checkpoint-interval=1s", f"--restart-dir={image}", "none",
                                      output="second.out")
        again = f"{job}.0"
        self.wait_versions(again, 1, PATIENCE)
        self.kill_step_tasks(job)
        self.assertNotEqual(second.wait(30), 0)
        last = self.sh([*srun, f"--restart-dir={again}", "none"], timeout=PATIENCE)
        self.assertEqual(last.stdout.splitlines()[-1], whole)
        rounds = [int(n) for n in re.findall(r"ROUND (\d+)", last.stdout)]
        self.assertEqual(rounds, list(range(40 - 10 * len(rounds), 40, 10)))
        self.assertLess(len(rounds), 4)
        self.assertEqual(self.user_segments(), set())

    def test_shared_memory(self):
        self.run_through_deaths(2)

    def test_tcp(self):
        self.run_through_deaths(2, ["UCX_TLS=tcp,self"])

    def test_without_the_process_manager(self):
        """A restart needs srun --mpi=pmi2 again, and says so."""
        srun, job = self.start_srun("--mpi=pmi2", "-n2", "--checkpoint-interval=1s", *WORDS)
        self.wait_versions(f"{job}.0", 1)
        self.kill_step_tasks(job)
        self.assertNotEqual(srun.wait(30), 0)
        result = self.srun("--mpi=none", "-n2", f"--restart-dir={job}.0", "none")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("--mpi=pmi2", result.stderr)


@unittest.skipUnless(PROGRAM.exists(), "no MPICH to build with")
class TwoNodes(Coordinated):
    def test_tcp_between_nodes(self):
        srun = ["srun", "--mpi=pmi2", "-N2", "-n2"]
        env = ["env", "UCX_TLS=tcp,self"]
        whole = self.sh([*srun, *env, *WORDS[:-1], "0"], timeout=PATIENCE).stdout.splitlines()[-1]
        self.assertRegex(whole, r"^RESULT allreduce ranks=2 rounds=40 hash=[0-9a-f]{16}$")
        first, job = self.start_srun(*srun[1:], "--checkpoint-interval=1s", *env, *WORDS)
        self.wait_whole(f"{job}.0", 2, PATIENCE)
        for node in (1, 2):
            self.kill_step_tasks(job, node=node)
        self.assertNotEqual(first.wait(30), 0)
        last = self.srun(*srun[1:], f"--restart-dir={job}.0", "none", timeout=PATIENCE)
        self.assertEqual(last.stdout.splitlines()[-1:], [whole], last.stderr + self.agent_log()[-3000:])


if __name__ == "__main__":
    harness.main()
