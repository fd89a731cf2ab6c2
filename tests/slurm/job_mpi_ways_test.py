# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes started by MPI programs, connections between them, names, and the ways in which a program ends: after a
restart they are what they are in a run that nothing happens to, which may be an error."""

import re
import shutil
import subprocess
import unittest

import harness
from mpicase import compile_with, MpiCase, OpenMpiProgram, PATIENCE, with_open_mpi

SAID = re.compile(r"^(?:(?:before|still|after) \w+ \w+|DONE|end \d+)$", re.MULTILINE)
HANGS = 40  # s: as long without versions is taken for ever


class Ways(MpiCase):
    compiler = None
    srun = ()

    def setUp(self):
        super().setUp()
        compile_with(self, self.compiler, "mpi_ways")
        self.stop_going()

    def go(self):
        self.sh(["touch", "go"])

    def stop_going(self):
        (self.work / "go").unlink(missing_ok=True)

    def undisturbed(self, way):
        """(what it says, srun's exit status). It may well take an error, be ended on its way, or hang (no status)."""
        self.go()
        run = self.srun_ways("whole.out", way)
        try:
            status = run.wait(HANGS)
        except subprocess.TimeoutExpired:
            status = None
            self.cluster.run(["scancel", "--user", self.user], check=False)
            run.wait(60)
        self.stop_going()
        said = SAID.findall(self.text("whole.out"))
        print(f"without: {way}: {said}, exit {status}", flush=True)
        return said, status

    def srun_ways(self, output, *words):
        return self.start(["srun", f"--mpi={self.mpi}", "-n2", *self.srun, "./mpi_ways", *words], output)

    @staticmethod
    def split_end(said):
        ends = [line for line in said if line.startswith("end ")]
        return [line for line in said if line not in ends], int(ends[-1].split()[1])

    def assert_like(self, said, status, said_without, status_without, why):
        """When one rank fails, whose status counts, and what others still say, is a race without us, too."""
        if status_without != 0:
            said, said_without = ([line for line in lines if line != "DONE"] for lines in (said, said_without))
            self.assertNotEqual(status, 0, why)
        else:
            self.assertEqual(status, 0, why)
        self.assertEqual(said, said_without, why)

    def through_a_death(self, *ways):
        for way in ways:
            with self.subTest(way=way):
                said, status = self.undisturbed(way)
                if status is None or "READY" not in self.text("whole.out"):
                    continue  # it does not come to where it could be saved
                first, job = self.start_srun(f"--mpi={self.mpi}", "-n2", *self.srun, "--checkpoint-interval=1s", "./mpi_ways",
                                             way, output="first.out")
                self.wait_text("first.out", "READY", PATIENCE)
                self.wait_versions(f"{job}.0", 1 + len(self.versions(f"{job}.0")), PATIENCE)
                self.kill_step_tasks(job)
                self.assertNotEqual(first.wait(30), 0)
                second, _ = self.start_srun(f"--mpi={self.mpi}", "-n2", *self.srun, f"--restart-dir={job}.0", "none",
                                            output="second.out")
                self.wait_text("second.out", "restarted from version", 60)
                self.go()
                found = second.wait(PATIENCE)
                self.stop_going()
                self.assert_like(SAID.findall(self.text("first.out")) + SAID.findall(self.text("second.out")), found, said, status,
                                 self.text("second.out") + self.agent_log()[-3000:])

    def through_a_requeue(self, launch, *ways):
        """Of a batch script: `launch` and the program in it, without srun."""
        for way in ways:
            with self.subTest(way=way):
                script = f"{launch} ./mpi_ways {way}; echo end $?"
                self.go()
                job = self.submit(script, "-n2")
                self.wait_job(job, timeout=PATIENCE)
                self.stop_going()
                said = SAID.findall(self.output(job))
                print(f"without: {way}: {said}", flush=True)
                job = self.submit(script, "-n2", "--checkpoint-interval=1s")
                self.wait_text(f"job-{job}.out", "READY", PATIENCE)
                self.wait_versions(f"{job}.batch", 1 + len(self.versions(f"{job}.batch")), PATIENCE)
                self.cluster.run(["scontrol", "requeue", job])
                self.wait_text(f"job-{job}.out", "restarted from version", PATIENCE)
                self.go()
                self.wait_job(job, timeout=PATIENCE)
                self.stop_going()
                self.assert_like(*self.split_end(SAID.findall(self.output(job))), *self.split_end(said),
                                 self.output(job) + self.agent_log()[-3000:])


MORE_PROCESSES = ("spawn", "children", "connect", "publish")
ENDS = ("abort", "exit", "die", "late")


@unittest.skipUnless(shutil.which("mpicc.mpich"), "no MPICH")
class Mpich(Ways):
    mpi = "pmi2"
    compiler = "mpicc.mpich"

    def test_more_processes(self):
        self.through_a_death(*MORE_PROCESSES)

    def test_ends(self):
        self.through_a_death(*ENDS)

    def test_mpiexec_on_one_node(self):
        self.through_a_requeue("mpiexec.hydra -launcher fork -n 2", "spawn", "publish", *ENDS)


@with_open_mpi
class OpenMpi(OpenMpiProgram, Ways):
    mpi = "pmix"
    compiler = "mpicc.openmpi"

    def test_more_processes(self):
        self.through_a_death(*MORE_PROCESSES)

    def test_ends(self):
        self.through_a_death(*ENDS)

    def test_mpirun_on_one_node(self):
        self.through_a_requeue(self.exports.replace("\n", ";") + "mpirun.openmpi --oversubscribe -n 2", *MORE_PROCESSES, *ENDS)


if __name__ == "__main__":
    harness.main()
