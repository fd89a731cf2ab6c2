# SPDX-License-Identifier: GPL-2.0-or-later
"""icpctld is killed in the middle of what it does with a job, and started again or not: the job ends right all the same."""

import contextlib
import json
import os
import re
import signal

import harness
import leftovers
from coordinated import Coordinated
from moments_test import MomentsCase

INTERVAL_S = 20  # far enough apart that none is under way when the agents stop
# What a loaded machine needs for a version, and Slurm to end a step.
SLACK_S = 4
COUNT = "perl -e '$| = 1; for my $i (1 .. 450) { print qq($i\\n); select undef, undef, undef, 0.1 }'"


class KilledCase(MomentsCase):
    config = "jitter: 0\nrequeue_margin: 50s\n"

    def begin_counting(self, moment, *options):
        return self.begin(f"--checkpoint-on={moment}", f"--checkpoint-interval={INTERVAL_S}s", *options, command=COUNT)

    def kill_in_the_middle(self, job, said, begin=lambda: None):
        """icpctld waits for the agents, which do nothing, when it is killed."""
        # Else an agent may stop between its version and its word about it.
        self.wait_for(lambda: re.search(rf"step {job}\.0: version 1", self.ctld_log()), 60, "the first version")
        with self.slow_agents():
            begin()
            self.wait_for(lambda: re.search(rf"job {job}: {said}.*: a version is taken", self.ctld_log()), 90, "icpctld to begin")
            self.cluster.kill_coordinator()

    def check_work_lost(self, job):
        """The numbers are all there; those that a run had written after the version it was ended with come twice."""
        said = [int(n) for n in re.findall(r"^\d+$", self.output(job), re.M)]
        self.assertEqual(sorted(set(said)), list(range(1, 451)), self.output(job))
        self.assertLessEqual((len(said) - 450) / 10, INTERVAL_S + SLACK_S, said)


class Drained(KilledCase):
    def drain(self, job):
        self.kill_in_the_middle(job, "node .* is drained", lambda: self.cluster.run(
            ["scontrol", "update", f"NodeName={self.cluster.node(1)}", "State=DRAIN", "Reason=repair"]))

    def test_started_again(self):
        job = self.begin_counting("drain")
        self.drain(job)
        self.cluster.start_coordinator()
        self.wait_text(f"job-{job}.out", "restarted from version", 90)
        self.assertNotEqual(self.node_of(job), self.cluster.node(1))
        self.assertEqual(self.wait_job(job, timeout=120), "COMPLETED", self.output(job))
        self.check_work_lost(job)

    def test_not_started(self):
        job = self.begin_counting("drain")
        self.drain(job)
        try:
            self.assertEqual(self.wait_job(job, timeout=120), "COMPLETED", self.output(job))
            self.assertNotIn("restarted from", self.output(job))
            self.check_work_lost(job)
        finally:
            self.cluster.start_coordinator()


class TimeLimit(KilledCase):
    def test_started_again(self):
        job = self.begin_counting("timelimit", "-t", "1")
        self.kill_in_the_middle(job, "the time limit is near")
        self.cluster.start_coordinator()
        self.assertEqual(self.wait_job(job, timeout=180), "COMPLETED", self.output(job))
        self.assertIn("restarted from version", self.output(job))
        self.check_work_lost(job)


class Preempted(Coordinated):
    """Of steps on several nodes; those on one need no icpctld for it."""

    def test_both(self):
        job = self.submit(f"srun {' '.join(self.ring('killed', 400, 20))}; echo end $?", "-N2", "-n2",
                          "--checkpoint-on=preempt", "--checkpoint-interval=1s")
        self.wait_whole(f"{job}.0", 2)
        self.cluster.run(["scontrol", "requeue", job])
        self.cluster.kill_coordinator()
        self.wait_job(job, "PENDING", "RUNNING", timeout=60)
        self.cluster.start_coordinator()
        self.wait_text(f"job-{job}.out", "restarted from version", 120)
        self.hurry()
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        self.assertEqual(self.results(self.output(job)), self.answer(400), self.output(job))

    def test_started_again_in_the_middle(self):
        """The last version is under way, its second node not ready yet, when icpctld ends and is there again."""
        job = self.submit(f"srun {' '.join(self.ring('again', 400, 20))}; echo end $?", "-N2", "-n2",
                          "--checkpoint-on=preempt", f"--checkpoint-interval={INTERVAL_S}s")
        self.wait_for(lambda: re.search(rf"step {job}\.0: 2 agents", self.ctld_log()), 30, "both agents")
        self.cluster.run(["icp", "create", job, "--wait"])
        with self.slow_agent_of(self.cluster.node(2)):
            self.cluster.run(["scontrol", "requeue", job])
            self.wait_for(lambda: self.phase(job) not in (None, "", "idle", "none"), 20, "the last version to begin")
            self.cluster.kill_coordinator()
            self.cluster.start_coordinator()
        self.wait_text(f"job-{job}.out", r"restarted from version \d+ of", 120)
        self.hurry()
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        self.assertEqual(self.results(self.output(job)), self.answer(400), self.output(job))
        runs = json.loads(self.cluster.run(["icp", "history", str(job), "--json"]).stdout)["runs"]
        print(f"lost: {runs[0]['work_lost_ms']} ms", flush=True)
        self.assertLessEqual(runs[0]["work_lost_ms"], (INTERVAL_S + SLACK_S) * 1000, runs)

    def phase(self, job):
        steps = json.loads(self.cluster.run(["icp", "status", str(job), "--json"]).stdout)["steps"]
        return next((step["phase"] for step in steps if step["step"] == "0" or step["step"] == 0), None)

    @contextlib.contextmanager
    def slow_agent_of(self, node):
        """The agent of the job's step on that node does nothing meanwhile."""
        pids = [pid for pid in self.agents() if f"SLURMD_NODENAME={node}".encode() in leftovers.read(f"/proc/{pid}/environ").split(b"\0")]
        self.assertTrue(pids)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    harness.main()
