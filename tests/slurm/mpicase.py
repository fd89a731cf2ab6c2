# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of MPI share: the program, and its way through deaths under one of srun's process managers."""

import os
import pathlib
import re
import shutil
import subprocess
import unittest

from jobcase import JobCase

# Few rounds that sleep for long: ranks that wait spin, which on a busy machine takes the other ranks' processor time.
OPTIONS = ["--rounds", "40", "--step-ms", "250"]
PATIENCE = 240  # s
RESULT = r"^RESULT \w+ ranks={} rounds=40 hash=[0-9a-f]{{16}}$"

with_open_mpi = unittest.skipUnless(shutil.which("mpirun.openmpi") and shutil.which("mpicc.openmpi"), "no Open MPI")


def open_mpi():
    """The major version of Open MPI; 0 where there is none."""
    if not shutil.which("mpirun.openmpi"):
        return 0
    asked = subprocess.run(["mpirun.openmpi", "--version"], capture_output=True, text=True, timeout=60, check=False)
    return int(re.search(r" ([0-9]+)\.|$", asked.stdout).group(1) or 0)


def have_mpi4py():
    """Debian's mpi4py speaks Open MPI."""
    asked = subprocess.run(["/usr/bin/python3", "-c", "import mpi4py.MPI as m; print(m.Get_library_version())"],
                           capture_output=True, text=True, timeout=60, check=False)
    return "Open MPI" in asked.stdout


with_mpi4py = unittest.skipUnless(shutil.which("mpirun.openmpi") and have_mpi4py(), "no mpi4py with Open MPI")


def compile_with(case, compiler, name):
    source = pathlib.Path(__file__).parents[1] / "programs" / f"{name}.c"
    case.cluster.run([compiler, "-pthread", "-o", case.work / name, source], timeout=120)


class Features:
    """Beside a class of tests, before it: MPI-IO, windows, one-sided, sub-communicators, what is in flight, threads."""

    program = "./mpi_features"
    compiler = None

    def setUp(self):
        super().setUp()
        compile_with(self, self.compiler, "mpi_features")


class MpiCase(JobCase):
    mpi = None  # srun's --mpi
    program = None

    def whole(self, srun, environment=()):
        """The last line of a run that nothing happens to."""
        ranks = next(word[2:] for word in srun if word.startswith("-n"))
        run = ["srun", *srun, *self.words(environment)[:-1], "0"]
        line = self.sh(run, timeout=PATIENCE).stdout.splitlines()[-1]
        self.assertRegex(line, RESULT.format(ranks))
        return line

    def words(self, environment=()):
        return [*(["env", *environment] if environment else []), self.program, *OPTIONS]

    def run_through_deaths(self, ranks, environment=()):
        """Run, kill, restart with versions, kill, restart. Compare with an uninterrupted run."""
        srun = [f"--mpi={self.mpi}", f"-n{ranks}"]
        whole = self.whole(srun, environment)
        first, job = self.start_srun(*srun, "--checkpoint-interval=1s", *self.words(environment))
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
        self.assertEqual(self.user_segments(), set())

    def restart_without_the_process_manager(self):
        """A restart needs the same --mpi again, and says so; with that it goes on."""
        srun, job = self.start_srun(f"--mpi={self.mpi}", "-n2", "--checkpoint-interval=1s", *self.words())
        self.wait_versions(f"{job}.0", 1)
        self.kill_step_tasks(job)
        self.assertNotEqual(srun.wait(30), 0)
        result = self.srun("--mpi=none", "-n2", f"--restart-dir={job}.0", "none")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(f"--mpi={self.mpi}", result.stderr)
        result = self.srun(f"--mpi={self.mpi}", "-n2", f"--restart-dir={job}.0", "none", timeout=PATIENCE)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout.splitlines()[-1], RESULT.format(2))


class OpenMpiProgram:
    """Beside a JobCase: the program, built for Open MPI, in the jobs' directory, and nodes that it knows by name."""

    @classmethod
    def configure(cls):
        super().configure()
        # Without it mpirun takes its own node for another one, and starts a step of its daemon there.
        cls.cluster.own_names = True

    def setUp(self):
        super().setUp()
        compile_with(self, "mpicc.openmpi", "allreduce")
        # For a batch script: where Open MPI does not lie in /usr. Behind what the plugin has put in front.
        self.exports = "".join(f"export {name}={value}\n" for name, value in os.environ.items()
                               if name.startswith(("OMPI_MCA", "OPAL_", "PMIX_", "LD_LIBRARY_PATH")))
        self.exports += f"export PATH=$PATH:{os.path.dirname(shutil.which('mpirun.openmpi'))}\n"
