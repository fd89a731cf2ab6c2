# SPDX-License-Identifier: GPL-2.0-or-later
"""Open MPI under srun --mpi=pmix: the same numbers, however often the job dies."""

import pathlib
import shutil

import harness
import networks
from coordinated import Coordinated
from mpicase import Features, MpiCase, OpenMpiProgram, PATIENCE, with_mpi4py, with_open_mpi


@with_open_mpi
class OpenMpi(OpenMpiProgram, MpiCase):
    mpi = "pmix"
    program = "./allreduce"

    def test_deaths_and_restarts(self):
        self.run_through_deaths(2)

    def test_requeue_of_a_batch_job(self):
        whole = self.whole(["--mpi=pmix", "-n2"])
        job = self.submit(f"srun --mpi=pmix -n2 {' '.join(self.words())}; echo end $?", "-n2", "--checkpoint-interval=1s")
        self.wait_text(f"job-{job}.out", "ROUND 10", 60)
        self.wait_versions(f"{job}.0", 3, 60)
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=120), "COMPLETED", self.output(job) + self.agent_log()[-2000:])
        self.assertEqual(self.output(job).splitlines()[-2:], [whole, "end 0"])
        self.assertEqual(self.output(job).count("ROUND 0\n"), 1)

    def test_without_a_server(self):
        self.restart_without_the_process_manager()


@with_open_mpi
class MoreOfMpi(Features, OpenMpiProgram, MpiCase):
    mpi = "pmix"
    compiler = "mpicc.openmpi"

    def test_features(self):
        self.run_through_deaths(2)

    def test_features_over_tcp(self):
        self.run_through_deaths(2, ["OMPI_MCA_btl=tcp,self", "OMPI_MCA_pml=ob1", "OMPI_MCA_osc=^ucx"])

    def test_features_over_ucx(self):
        # Open MPI leaves UCX alone where there is no fabric, unless told otherwise.
        self.run_through_deaths(2, ["OMPI_MCA_pml=ucx", "OMPI_MCA_opal_common_ucx_tls=any",
                                    "OMPI_MCA_opal_common_ucx_devices=any", "UCX_TLS=tcp,self,posix,sysv,cma"])


@with_open_mpi
class TwoNodes(OpenMpiProgram, Coordinated, MpiCase):
    # Open MPI 5 finds no way from an address to itself.
    options = {**Coordinated.options, "networks": True}
    mpi = "pmix"
    program = "./allreduce"

    @classmethod
    def configure(cls):
        networks.leave_host()
        super().configure()
        # Slurm's PMIx server makes a directory of the step's name there, and the nodes are on one host.
        cls.cluster.extra_conf = "TmpFS=/tmp/%n\n"

    def setUp(self):
        super().setUp()
        for node in self.cluster.node_names:
            directory = pathlib.Path("/tmp", node)
            directory.mkdir()
            self.addCleanup(shutil.rmtree, directory)
            directory.chmod(0o1777)

    def test_deaths_and_restarts(self):
        srun = ["--mpi=pmix", "-N2", "-n2"]
        whole = self.whole(srun)
        image = None
        for _ in range(2):
            again = [f"--restart-dir={image}", "none"] if image else self.words()
            running, job = self.start_srun(*srun, "--checkpoint-interval=1s", *again)
            image = f"{job}.0"
            self.wait_whole(image, 2, PATIENCE)
            for node in (1, 2):
                self.kill_step_tasks(job, node=node)
            self.assertNotEqual(running.wait(30), 0)
        last = self.srun(*srun, f"--restart-dir={image}", "none", timeout=PATIENCE)
        self.assertEqual(last.stdout.splitlines()[-1:], [whole], last.stderr + self.agent_log()[-3000:])
        self.assertEqual(last.returncode, 0)


class Mpi4py:
    """Beside a class above: its tests with a program in Python."""

    program = "./allreduce_mpi4py.py"

    def setUp(self):
        super().setUp()
        shutil.copy(harness.ROOT / "tests" / "programs" / "allreduce_mpi4py.py", self.work)


@with_mpi4py
class Python(Mpi4py, OpenMpi):
    def test_without_a_server(self):
        self.skipTest("in C above")


@with_mpi4py
class PythonOnTwoNodes(Mpi4py, TwoNodes):
    pass


if __name__ == "__main__":
    harness.main()
