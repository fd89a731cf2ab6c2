# SPDX-License-Identifier: GPL-2.0-or-later
"""mpirun and mpiexec in a batch script on two nodes: their daemons run in a step of their own, which belongs to the
script's versions, and is started again with it."""

import contextlib
import os
import shutil
import signal
import unittest

import harness
import leftovers
import networks
from coordinated import Coordinated
from mpicase import open_mpi, OpenMpiProgram, PATIENCE, with_open_mpi

MPICH = harness.BUILD / "tests" / "programs" / "allreduce"


class Launched(Coordinated):
    """A job whose launcher starts a step. `command`: the launcher's call, for `rounds` of a number of milliseconds."""

    rounds = 60

    def script(self, step_ms):
        raise NotImplementedError

    def part(self, job, number=1):
        """Versions that the launched step's node has committed."""
        found = self.work.glob(f"{job}.batch/v*/*.launch{number}/manifest.icp")
        return {int(path.parts[-3][1:]) for path in found}

    def wait_both(self, job, count, timeout=PATIENCE):
        """Until so many versions are whole: the script's part and the step's."""
        def whole():
            script = {int(path.parts[-3][1:]) for path in self.work.glob(f"{job}.batch/v*/*/manifest.icp")
                      if ".launch" not in path.parts[-2]}
            return sorted(script & self.part(job))
        return self.wait_for(lambda: len(whole()) >= count, timeout,
                             f"{count} versions; icpctld: {self.ctld_log()[-2000:]} agents: {self.agent_log()[-4000:]} "
                             f"output: {self.output(job)[-2000:]}")

    def answer(self, ranks=2):
        job = self.submit(self.script(0), f"-N{ranks}", f"-n{ranks}")
        self.assertEqual(self.wait_job(job, timeout=PATIENCE), "COMPLETED", self.output(job))
        lines = self.output(job).splitlines()[-2:]
        self.assertRegex(lines[0], rf"^RESULT allreduce ranks={ranks} rounds={self.rounds} hash=[0-9a-f]{{16}}$")
        self.assertEqual(lines[1], "end 0")
        return lines

    def check_end(self, job, wanted):
        self.assertEqual(self.wait_job(job, timeout=PATIENCE), "COMPLETED",
                         self.output(job) + self.ctld_log()[-3000:] + self.agent_log()[-5000:])
        text = self.output(job)
        self.assertEqual(text.splitlines()[-2:], wanted)
        return text

    def through_a_requeue(self):
        wanted = self.answer()
        job = self.submit(self.script(250), "-N2", "-n2", "--checkpoint-interval=1s")
        self.wait_text(f"job-{job}.out", "ROUND 10", PATIENCE)
        self.wait_both(job, 2)
        self.cluster.run(["scontrol", "requeue", job])
        text = self.check_end(job, wanted)
        self.assertIn(f"slurm-icp: step {job}.batch restarted from version", text)
        self.assertEqual(text.count("ROUND 0\n"), 1)
        return job

    def through_a_new_job(self):
        wanted = self.answer()
        first = self.submit(self.script(250), "-N2", "-n2", "--checkpoint-interval=1s")
        self.wait_text(f"job-{first}.out", "ROUND 10", PATIENCE)
        self.wait_both(first, 2)
        self.kill_step_tasks(first)
        for pid in self.script_pids(first):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait_job(first, timeout=60)
        second = self.submit(self.script(250), "-N2", "-n2", "--checkpoint-interval=1s",
                             f"--restart-dir={first}.batch")
        text = self.check_end(second, wanted)
        self.assertNotIn("ROUND 0\n", text)

    def script_pids(self, job):
        stepd = self.stepd(job, "batch")
        children = leftovers.read(f"/proc/{stepd}/task/{stepd}/children").split()
        return [int(pid) for pid in children]


# Open MPI 5 finds no way from an address to itself: its nodes have addresses of their own.
NETWORKS = open_mpi() >= 5


@with_open_mpi
class OpenMpi(OpenMpiProgram, Launched):
    options = {**Coordinated.options, "networks": NETWORKS}

    @classmethod
    def configure(cls):
        if NETWORKS:
            networks.leave_host()
        super().configure()

    def script(self, step_ms):
        return (self.exports + f"mpirun.openmpi --map-by node -n 2 ./allreduce --rounds {self.rounds} "
                f"--step-ms {step_ms}; echo end $?")

    def test_requeue(self):
        self.through_a_requeue()

    def test_new_job(self):
        self.through_a_new_job()


@with_open_mpi
class OnOtherNodes(OpenMpi):
    """Three ranks on three nodes, then in a new job with other names of nodes: Slurm chooses where the daemons run."""

    options = {**OpenMpi.options, "nodes": 4}

    def script(self, step_ms):
        return super().script(step_ms).replace("-n 2", "-n 3")

    def test_requeue(self):
        self.skipTest("on two nodes above")

    def test_new_job(self):
        nodes = self.cluster.node_names
        wanted = self.answer(3)
        first = self.submit(self.script(250), "-N3", "-n3", "--checkpoint-interval=1s", f"--exclude={nodes[3]}")
        self.wait_text(f"job-{first}.out", "ROUND 10", PATIENCE)
        self.wait_both(first, 2)
        self.cluster.run(["scancel", "--signal=KILL", "--full", first])
        self.wait_job(first, timeout=60)
        second = self.submit(self.script(250), "-N3", "-n3", "--checkpoint-interval=1s", f"--exclude={nodes[1]}",
                             f"--restart-dir={first}.batch")
        text = self.check_end(second, wanted)
        self.assertNotIn("ROUND 0\n", text)


@with_open_mpi
class OnOneNode(OpenMpi):
    """No daemons, hence no step of their own."""

    def test_requeue(self):
        job = self.submit(self.script(0), "-N1", "-n2")
        self.assertEqual(self.wait_job(job, timeout=PATIENCE), "COMPLETED", self.output(job))
        wanted = self.output(job).splitlines()[-2:]
        job = self.submit(self.script(250), "-N1", "-n2", "--checkpoint-interval=1s")
        self.wait_text(f"job-{job}.out", "ROUND 10", PATIENCE)
        self.wait_versions(f"{job}.batch", 2)
        self.cluster.run(["scontrol", "requeue", job])
        text = self.check_end(job, wanted)
        self.assertIn(f"slurm-icp: step {job}.batch restarted from version", text)
        self.assertEqual(text.count("ROUND 0\n"), 1)

    def script(self, step_ms):
        return super().script(step_ms).replace("--map-by node", "--oversubscribe")

    def test_new_job(self):
        self.skipTest("on two nodes above")


@with_open_mpi
class OnFewerNodes(OpenMpi):
    """Three ranks on three nodes; then on two, and on one. Where each node has an address of its own all ranks listen at the
    same port, and two of them on a node are refused."""

    options = {**OpenMpi.options, "nodes": 3}

    def script(self, step_ms):
        return super().script(step_ms).replace("-n 2", "-n 3")

    def test_requeue(self):
        self.skipTest("on two nodes above")

    def test_new_job(self):
        wanted = self.answer(3)
        for count in (2, 1):
            with self.subTest(nodes=count):
                first = self.submit(self.script(250), "-N3", "-n3", "--checkpoint-interval=1s")
                self.wait_text(f"job-{first}.out", "ROUND 10", PATIENCE)
                self.wait_both(first, 2)
                self.cluster.run(["scancel", "--signal=KILL", "--full", first])
                self.wait_job(first, timeout=60)
                again = self.submit(self.script(250), f"-N{count}-{count}", "-n3", f"--restart-dir={first}.batch")
                if NETWORKS:
                    self.assertEqual(self.wait_job(again, timeout=PATIENCE), "FAILED")
                    self.assertRegex(self.output(again), "(TCP port |TCP socket to 0.0.0.0:)1024")
                else:
                    self.assertNotIn("ROUND 0\n", self.check_end(again, wanted))


@unittest.skipUnless(MPICH.exists() and shutil.which("mpiexec.hydra"), "no MPICH")
class Mpich(Launched):
    @classmethod
    def configure(cls):
        super().configure()
        cls.cluster.own_names = True

    def script(self, step_ms):
        return (f"UCX_TLS=tcp,self mpiexec.hydra -localhost 127.0.0.1 -ppn 1 -n 2 {MPICH} --rounds {self.rounds} --step-ms {step_ms}; "
                "echo end $?")

    def test_requeue(self):
        self.through_a_requeue()


if __name__ == "__main__":
    harness.main()
