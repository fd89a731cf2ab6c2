# SPDX-License-Identifier: GPL-2.0-or-later
"""The private cluster itself, without our plugin: it works, and leaves nothing."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import unittest

import harness
from cluster import Cluster, ClusterError, have_freezer


class OneNode(harness.ClusterCase):
    def test_tasks_run_as_the_user(self):
        lines = self.sh(["srun", "-n4", "id", "-un"]).stdout.splitlines()
        self.assertEqual(lines, [self.user] * 4)

    def test_batch_job(self):
        job = self.submit("echo from $SLURM_JOB_ID\nsrun echo step", "-n2")
        self.assertEqual(self.wait_job(job), "COMPLETED")
        self.assertEqual(self.output(job), f"from {job}\nstep\nstep\n")

    def test_requeue(self):
        job = self.submit("echo start ${SLURM_RESTART_COUNT:-0}\n"
                          "[[ -n ${SLURM_RESTART_COUNT-} ]] || sleep 600")
        self.wait_text(f"job-{job}.out", "start 0")
        self.cluster.run(["scontrol", "requeue", job])
        self.wait_text(f"job-{job}.out", "start 1")
        self.assertEqual(self.wait_job(job), "COMPLETED")

    def test_cancel(self):
        job = self.submit("srun sleep 600", "-n2")
        self.wait_for(lambda: len(self.step_pids(job)) == 2, what="two tasks")
        self.sh(["scancel", job])
        self.assertEqual(self.wait_job(job), "CANCELLED")
        self.wait_for(lambda: not self.step_pids(job), what="the tasks' end")

    def test_killed_tasks(self):
        srun = self.start("srun -n3 bash -c 'echo job $SLURM_JOB_ID; sleep 600'", "srun.out")
        job = self.wait_text("srun.out", r"job (\d+)")[1]
        self.wait_for(lambda: len(self.step_pids(job)) >= 3, what="three tasks")
        self.assertGreaterEqual(self.kill_step_tasks(job), 3)
        self.assertEqual(srun.wait(20), 128 + signal.SIGKILL)

    def test_mgs(self):
        alone = self.sh("mgs --rows 100 --columns 40 --fork 4").stdout.splitlines()[-1]
        tasks = self.sh("srun -n4 mgs --rows 100 --columns 40").stdout.splitlines()[-1]
        self.assertTrue(alone.startswith("RESULT"))
        self.assertEqual(alone, tasks)


class LinuxProc(OneNode):
    options = {"proctrack": "linuxproc"}


class TwoNodes(harness.ClusterCase):
    options = {"nodes": 2}

    def test_tasks_on_both(self):
        lines = self.sh("srun -N2 -n4 printenv SLURMD_NODENAME").stdout.splitlines()
        self.assertEqual(sorted(set(lines)), self.cluster.node_names)

    def test_node_failure(self):
        job = self.submit("echo on $SLURMD_NODENAME ${SLURM_RESTART_COUNT:-0}\n"
                          "[[ -n ${SLURM_RESTART_COUNT-} ]] || sleep 600", "--requeue", "-N1",
                          "-w", self.cluster.node(1))
        self.wait_text(f"job-{job}.out", "on .*n1 0")
        self.cluster.kill_node(1)
        self.cluster.run(["scontrol", "update", f"NodeName={self.cluster.node(1)}",
                          "State=DOWN", "Reason=test"])
        self.cluster.start_node(1)
        self.cluster.run(["scontrol", "update", f"NodeName={self.cluster.node(1)}",
                          "State=RESUME"], check=False)
        self.wait_text(f"job-{job}.out", "on .*n1 1", timeout=60)


class LifeCycle(unittest.TestCase):
    def setUp(self):
        self.state = tempfile.mkdtemp(prefix="icp-test-", dir="/var/tmp")
        self.addCleanup(shutil.rmtree, self.state, ignore_errors=True)

    def test_after_a_crash(self):
        """All daemons gone at a blow, a task and cgroups left: `up` cleans and works."""
        first = Cluster(self.state).up()
        first.popen("srun sleep 600", user=first.user)
        first.wait_for(lambda: "sleep" in " ".join(first.leftovers()), 20, "a task")
        for pid, _ in first.pids.values():
            os.kill(pid, signal.SIGKILL)
        with Cluster(self.state) as second:
            self.assertNotIn("sleep", " ".join(second.leftovers()))
            second.run("srun hostname", user=second.user)
        self.assertEqual(second.leftovers(), [])
        first.down()

    def test_down_while_busy(self):
        for proctrack in ("cgroup", "linuxproc"):
            with self.subTest(proctrack), Cluster(self.state, proctrack=proctrack) as cluster:
                cluster.popen("srun -n2 setsid sleep 600", user=cluster.user)
                cluster.run("ipcmk -M 4096", user=cluster.user)
                cluster.wait_for(lambda: "setsid" not in " ".join(cluster.leftovers()) and
                                 str(cluster.leftovers()).count("sleep") >= 2, 20, "tasks")
                self.assertIn("IPC object", str(cluster.leftovers()))
                self.assertEqual(cluster.down(), [])
                self.assertEqual(cluster.leftovers(), [])

    def test_owner_dies(self):
        """A cluster under guard goes when its owner is killed."""
        script = (f"from cluster import Cluster; import os, signal; c = Cluster({self.state!r})\n"
                  "c.__enter__(); os.kill(os.getpid(), signal.SIGKILL)")
        subprocess.run(["/usr/bin/python3", "-c", script], check=False, timeout=60,
                       cwd=harness.ROOT / "tests" / "cluster")
        Cluster.wait_for(lambda: not os.path.exists(self.state), 30, "the guard")

    def test_two_at_once(self):
        other = tempfile.mkdtemp(prefix="icp-test-", dir="/var/tmp")
        self.addCleanup(shutil.rmtree, other, ignore_errors=True)
        with Cluster(self.state) as one, Cluster(other) as two:
            self.assertIn(two.node(1), two.run("srun printenv SLURMD_NODENAME").stdout)
            one.down()
            self.assertIn(two.node(1), two.run("srun printenv SLURMD_NODENAME").stdout)

    def test_refuses_foreign_directory(self):
        with open(os.path.join(self.state, "precious"), "w", encoding="ascii"):
            pass
        with self.assertRaisesRegex(ClusterError, "neither empty nor"):
            Cluster(self.state).up()

    def test_command(self):
        command = harness.ROOT / "tests" / "cluster" / "icp-cluster"

        def icp_cluster(*words):
            return subprocess.run([command, *words, "--state", self.state], check=True,
                                  timeout=60, capture_output=True, text=True).stdout

        with contextlib.ExitStack() as cleanup:
            cleanup.callback(icp_cluster, "down")
            said = icp_cluster("up", "--proctrack", "cgroup", "--cpus", "2")
            self.assertIn("proctrack/" + ("cgroup" if have_freezer() else "linuxproc"), said)
            script = icp_cluster("env") + "timeout 20 srun -n2 echo works"
            shown = subprocess.run(["bash", "-c", script], check=True, timeout=60,
                                   capture_output=True, text=True, cwd="/").stdout
            self.assertEqual(shown, "works\nworks\n")
        self.assertEqual(Cluster.load(self.state).leftovers(), [])


if __name__ == "__main__":
    harness.main()
