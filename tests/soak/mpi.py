#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""MPI programs under srun, all of whose tasks are killed by SIGKILL at random moments, and restarted each time in a new job.

    tests/soak/mpi.py [--moments N] [--seed N] [--list] [ROW ...]

A run is killed three times at most, MPI_Init and MPI_Finalize included, and ends with the answer of a run that nothing
happens to. MPICH 4.0.2 over UCX's TCP may hang in MPI_Finalize on two nodes, also without us: not among the rows.
"""

import argparse
import pathlib
import random
import sys
import time

TOP = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "tests" / "slurm"))
import harness  # noqa: E402
from mpicase import compile_with, MpiCase, PATIENCE  # noqa: E402

UCX = ("UCX_TLS=tcp,self",)
OB1_TCP = ("OMPI_MCA_pml=ob1", "OMPI_MCA_btl=tcp,self")
# name: (srun's --mpi, compiler, program, ranks, environment)
ROWS = {
    "mpich": ("pmi2", "mpicc.mpich", "allreduce", 2, ()),
    "mpich tcp": ("pmi2", "mpicc.mpich", "allreduce", 2, UCX),
    "mpich features": ("pmi2", "mpicc.mpich", "mpi_features", 2, ()),
    "open mpi": ("pmix", "mpicc.openmpi", "allreduce", 2, ()),
    "open mpi tcp": ("pmix", "mpicc.openmpi", "allreduce", 2, OB1_TCP),
    "open mpi features": ("pmix", "mpicc.openmpi", "mpi_features", 2, ()),
}
KILLS = 3  # of one run, at most


class Moments(MpiCase):
    moments = 20

    @classmethod
    def configure(cls):
        super().configure()
        cls.cluster.own_names = True

    def runTest(self):
        wrong = []
        for name in self.rows:
            self.mpi, compiler, program, ranks, environment = ROWS[name]
            self.program = f"./{program}"
            compile_with(self, compiler, program)
            srun = [f"--mpi={self.mpi}", f"-n{ranks}"]
            whole = self.whole(srun, environment)
            done = right = runs = first = 0
            begin = time.monotonic()
            while done < self.moments:
                kills, early, last = self.one_run(srun, environment, min(KILLS, self.moments - done))
                done, first, runs = done + kills, first + early, runs + 1
                if last == whole:
                    right += 1
                else:
                    wrong.append(f"{name}: {last}")
                print(f"{name}: {done} moments, {first} before a version, {right} of {runs} runs right", flush=True)
            print(f"RESULT {name}: {done} moments, {right} of {runs} runs right, {time.monotonic() - begin:.0f} s", flush=True)
        self.assertEqual(wrong, [])

    def one_run(self, srun, environment, most):
        """(times killed, of which before there was a version, the last line)"""
        image, kills, early = None, 0, 0
        while True:
            again = [f"--restart-dir={image}", "none"] if image else self.words(environment)
            running, job = self.start_srun(*srun, "--checkpoint-interval=0.3s", *again, output="run.out")
            if kills < most:
                time.sleep(self.random.uniform(0.2, 6))
            if kills < most and running.poll() is None:
                self.kill_step_tasks(job)
                kills += 1
                running.wait(60)
                if self.versions(f"{job}.0"):
                    image = f"{job}.0"
                else:
                    early += 1
                continue
            running.wait(PATIENCE)
            text = self.text("run.out")
            return kills, early, next((line for line in text.splitlines() if line.startswith("RESULT ")), text[-1500:])


def main():
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("rows", nargs="*", metavar="ROW", default=list(ROWS))
    given.add_argument("--moments", type=int, default=20)
    given.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    given.add_argument("--list", action="store_true")
    options = given.parse_args()
    if options.list:
        print("\n".join(ROWS))
        return
    print(f"seed {options.seed}", flush=True)
    Moments.rows, Moments.moments, Moments.random = options.rows, options.moments, random.Random(options.seed)
    sys.argv[1:] = ["Moments"]
    harness.main()


if __name__ == "__main__":
    main()
