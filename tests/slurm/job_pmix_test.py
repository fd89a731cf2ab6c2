# SPDX-License-Identifier: GPL-2.0-or-later
"""Open MPI under srun --mpi=pmix: the same numbers, however often the job dies."""

import pathlib
import re
import shutil
import unittest

import harness
from coordinated import Coordinated
from jobcase import JobCase

WORDS = ["./allreduce", "--rounds", "40", "--step-ms", "250"]
PATIENCE = 240  # s
RESULT = r"^RESULT allreduce ranks=2 rounds=40 hash=[0-9a-f]{16}$"


def build(case):
    """The MPI program, for Open MPI, into the jobs' directory."""
    source = pathlib.Path(__file__).parents[1] / "programs" / "allreduce.c"
    case.cluster.run(["mpicc.openmpi", "-o", case.work / "allreduce", source], timeout=120)


@unittest.skipUnless(shutil.which("mpicc.openmpi"), "no Open MPI")
class OpenMpi(JobCase):
    @classmethod
    def configure(cls):
        super().configure()
        cls.cluster.own_names = True

    def setUp(self):
        super().setUp()
        build(self)

    def whole(self, *srun):
        text = self.sh(["srun", *srun, *WORDS[:-1], "0"], timeout=PATIENCE).stdout.splitlines()[-1]
        self.assertRegex(text, RESULT)
        return text

    def test_deaths_and_restarts(self):
        srun = ["--mpi=pmix", "-n2"]
        whole = self.whole(*srun)
        first, job = self.start_srun(*srun, "--checkpoint-interval=1s", *WORDS)
        image = f"{job}.0"
        self.wait_versions(image, 2, PATIENCE)
        self.kill_step_tasks(job)
        self.assertNotEqual(first.wait(30), 0)
        second, job = self.start_srun(*srun, "--checkpoint-interval=1s", f"--restart-dir={image}", "none",
                                      output="second.out")
        again = f"{job}.0"
        self.wait_versions(again, 1, PATIENCE)
        self.kill_step_tasks(job)
        self.assertNotEqual(second.wait(30), 0, self.text("second.out"))
        last = self.srun(*srun, f"--restart-dir={again}", "none", timeout=PATIENCE)
        self.assertEqual(last.returncode, 0, last.stderr + self.agent_log()[-2000:])
        self.assertEqual(last.stdout.splitlines()[-1], whole)
        rounds = [int(n) for n in re.findall(r"ROUND (\d+)", last.stdout)]
        self.assertEqual(rounds, list(range(40 - 10 * len(rounds), 40, 10)))
        self.assertLess(len(rounds), 4)

    def test_requeue_of_a_batch_job(self):
        whole = self.whole("--mpi=pmix", "-n2")
        job = self.submit(f"srun --mpi=pmix -n2 {' '.join(WORDS)}; echo end $?", "-n2", "--checkpoint-interval=1s")
        self.wait_text(f"job-{job}.out", "ROUND 10", 60)
        self.wait_versions(f"{job}.0", 3, 60)
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=120), "COMPLETED", self.output(job) + self.agent_log()[-2000:])
        self.assertEqual(self.output(job).splitlines()[-2:], [whole, "end 0"])
        self.assertEqual(self.output(job).count("ROUND 0\n"), 1)

    def test_without_a_server(self):
        """A restart needs srun --mpi=pmix again, and says so."""
        srun, job = self.start_srun("--mpi=pmix", "-n2", "--checkpoint-interval=1s", *WORDS)
        self.wait_versions(f"{job}.0", 1)
        self.kill_step_tasks(job)
        self.assertNotEqual(srun.wait(30), 0)
        result = self.srun("--mpi=none", "-n2", f"--restart-dir={job}.0", "none")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("--mpi=pmix", result.stderr)


@unittest.skipUnless(shutil.which("mpicc.openmpi"), "no Open MPI")
class TwoNodes(Coordinated):
    @classmethod
    def configure(cls):
        super().configure()
        cls.cluster.own_names = True
        # Slurm's PMIx server makes a directory of the step's name there, and the nodes are on one host.
        cls.cluster.extra_conf = "TmpFS=/tmp/%n\n"

    def setUp(self):
        super().setUp()
        build(self)
        for node in self.cluster.node_names:
            directory = pathlib.Path("/tmp", node)
            directory.mkdir()
            self.addCleanup(shutil.rmtree, directory)
            directory.chmod(0o1777)

    def test_deaths_and_restarts(self):
        srun = ["--mpi=pmix", "-N2", "-n2"]
        whole = self.sh(["srun", *srun, *WORDS[:-1], "0"], timeout=PATIENCE).stdout.splitlines()[-1]
        self.assertRegex(whole, RESULT)
        image = None
        for _ in range(2):
            again = [f"--restart-dir={image}", "none"] if image else WORDS
            running, job = self.start_srun(*srun, "--checkpoint-interval=1s", *again)
            image = f"{job}.0"
            self.wait_whole(image, 2, PATIENCE)
            for node in (1, 2):
                self.kill_step_tasks(job, node=node)
            self.assertNotEqual(running.wait(30), 0)
        last = self.srun(*srun, f"--restart-dir={image}", "none", timeout=PATIENCE)
        self.assertEqual(last.stdout.splitlines()[-1:], [whole], last.stderr + self.agent_log()[-3000:])
        self.assertEqual(last.returncode, 0)


if __name__ == "__main__":
    harness.main()
