# SPDX-License-Identifier: GPL-2.0-or-later
"""MPI under srun's own process manager: the same numbers, however often the job dies."""

import unittest

import harness
from coordinated import Coordinated
from mpicase import Features, MpiCase, OPTIONS, PATIENCE

PROGRAM = harness.BUILD / "tests" / "programs" / "allreduce"
WORDS = ["allreduce", *OPTIONS]


@unittest.skipUnless(PROGRAM.exists(), "no MPICH to build with")
class Mpi(MpiCase):
    mpi = "pmi2"
    program = "allreduce"

    def test_shared_memory(self):
        self.run_through_deaths(2)

    def test_tcp(self):
        self.run_through_deaths(2, ["UCX_TLS=tcp,self"])

    def test_without_the_process_manager(self):
        self.restart_without_the_process_manager()


@unittest.skipUnless(PROGRAM.exists(), "no MPICH to build with")
class MoreOfMpi(Features, MpiCase):
    mpi = "pmi2"
    compiler = "mpicc.mpich"

    def test_features(self):
        self.run_through_deaths(2)


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
