# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests that drive a real Slurm share: a cluster per test class, and verbs.

A test class derives from ClusterCase, and says in `options` what its cluster is
like (arguments of cluster.Cluster). The build directory comes from ICP_BUILD_DIR.
Jobs run as the ordinary user; scripts, output and images lie in self.work.
"""

import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cluster"))
import leftovers  # noqa: E402
from cluster import Cluster  # noqa: E402

BUILD = pathlib.Path(os.environ.get("ICP_BUILD_DIR", ROOT / "build" / "release"))
PLUGIN = BUILD / "spank" / "spank_icp.so"
TOOLS = tuple(BUILD / "coordinator" / name for name in ("icp", "icpctld", "icpstepd", "icp-proxy", "icp-init"))
PROGRAMS = [BUILD / "tests" / "programs" / name for name in (
    "malloc_and_write", "mgs", "fork_sysv", "tcp_ring", "threads_sum", "allreduce", "numpy_threads.py", "pipeline.sh",
    "primes.pl")]
# Slurm's own and ours: in a step's process list, but no tasks.
HELPERS = {"slurmstepd", "icpstepd", "icp", "icp-proxy", "icp-init"}
SKIPPED = 77


def main():
    """Run the calling file's tests. CTest takes exit code 77 for "skipped"."""
    if os.geteuid() != 0:
        print("skipped: a private cluster needs root")
        sys.exit(SKIPPED)
    unittest.main(verbosity=2)


class ClusterCase(unittest.TestCase):
    """Tests that share one cluster, which must leave nothing behind."""

    options = {}
    with_plugin = False

    @classmethod
    def setUpClass(cls):
        base = os.environ.get("ICP_TEST_STATE", "/var/tmp")
        cls.state = tempfile.mkdtemp(prefix="icp-test-", dir=base)
        options = {"install": [p for p in (*PROGRAMS, *TOOLS) if p.exists()], **cls.options}
        if cls.with_plugin:
            options = {"plugin": PLUGIN, **options}
        cls.cluster = Cluster(cls.state, **options)
        cls.addClassCleanup(cls._take_down)
        cls.failed = False
        cls.configure()
        cls.cluster.up()
        cls.cluster.guard()
        cls.user, cls.work = cls.cluster.user, cls.cluster.work

    @classmethod
    def configure(cls):
        """Last changes to cls.cluster before it comes up."""

    @classmethod
    def _take_down(cls):
        complaints = cls.cluster.down()
        complaints += cls.cluster.leftovers()
        if cls.failed or complaints:
            print(f"logs are kept in {cls.state}", file=sys.stderr)
        else:
            shutil.rmtree(cls.state)
        if complaints:
            raise AssertionError("left behind: " + "; ".join(complaints))

    def run(self, result):
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before:
            type(self).failed = True
        return result

    def tearDown(self):
        """Each test finds an empty queue."""
        self.cluster.run(["scancel", "--user", self.user], check=False)
        self.wait_for(lambda: not self.cluster.run(["squeue", "-h"]).stdout.strip(), 60,
                      "an empty queue")

    # --- verbs -----------------------------------------------------------------

    def sh(self, command, *, user=None, **more):
        """Run `command` (a list, or text for bash) as the ordinary user; see Cluster.run."""
        return self.cluster.run(command, user=user or self.user, **more)

    def start(self, command, output, **more):
        """Start `command` as the ordinary user, its output into a file of self.work."""
        with open(self.work / output, "wb") as out:
            return self.cluster.popen(command, user=self.user, stdout=out, stderr=out, **more)

    def submit(self, script, *options):
        """sbatch text as a script, with more options. Returns the job's id.

        Output goes to job-<id>.out, appended to across requeues."""
        if not script.startswith("#!"):
            script = "#!/bin/bash\n" + script
        path = self.work / f"{self.id().rpartition('.')[2]}.sh"
        path.write_text(script)
        listing = self.sh(["sbatch", "--parsable", "--open-mode=append", "-o", "job-%j.out",
                           *options, path])
        return int(listing.stdout.split(";")[0])

    def output(self, job):
        return self.text(f"job-{job}.out")

    def text(self, name):
        """A file of self.work; empty if it is not there yet."""
        path = self.work / name
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, predicate, timeout=30, what="a condition"):
        return self.cluster.wait_for(predicate, timeout, what)

    def job(self, job):
        """What scontrol shows of a job: {field: text}; {} once it is forgotten."""
        shown = self.cluster.run(["scontrol", "show", "job", "-o", job], check=False, timeout=20)
        return dict(re.findall(r"(\S+?)=(\S*)", shown.stdout))

    def wait_job(self, job, *states, timeout=60):
        """Wait until the job is in one of the states (by default: has ended). Returns it."""
        states = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL",
                            "OUT_OF_MEMORY", "DEADLINE")
        return self.wait_for(lambda: (s := self.job(job).get("JobState")) in states and s,
                             timeout, f"job {job} to be {' or '.join(states)}")

    def wait_text(self, name, pattern, timeout=30):
        """Wait until a file of self.work matches; returns the match."""
        return self.wait_for(lambda: re.search(pattern, self.text(name)), timeout,
                             f"{pattern!r} in {name}, which has {self.text(name)[-500:]!r}")

    def step_pids(self, job, step=0, node=1):
        """Pids of the step's tasks and their children on a node; none of the helpers'."""
        listing = self.cluster.run(["scontrol", "listpids", f"{job}.{step}",
                                    self.cluster.node(node)], check=False, timeout=20)
        pids = [int(line.split()[0]) for line in listing.stdout.splitlines()[1:]]
        return [pid for pid in pids if pid > 0 and leftovers.read(
            f"/proc/{pid}/comm").decode().strip() not in HELPERS]

    def kill_step_tasks(self, job, step=0, node=1, signum=signal.SIGKILL):
        """Signal every process of the step's tasks. Returns how many there were."""
        pids = self.step_pids(job, step, node)
        for pid in pids:
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                pass
        return len(pids)
