# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of scontrol's front end and of icp's commands for jobs share: jobs to ask about, and a slow agent."""

import contextlib
import json
import os
import shlex
import signal

import harness
import leftovers
from jobcase import JobCase

FRONT_END = harness.BUILD / "coordinator" / "scontrol"
# Counts for a minute, and ends with status 5.
COUNT = ["perl", "-e", "$| = 1; for my $i (1 .. 600) { print qq($i\\n); select undef, undef, undef, 0.1 } exit 5"]
NEVER = "--checkpoint-interval=1h"  # an agent, but no version of its own accord


class CommandCase(JobCase):
    options = {"coordinator": True, "cpus": 8}
    config = "jitter: 0\n"

    def words_of(self, command, user=None, **more):
        """Run a command as the ordinary user, or root. Returns (stdout, stderr, exit code)."""
        if user == "nobody":
            more.setdefault("cwd", "/")
        done = self.cluster.run(command, user=user or self.user, check=False, timeout=60, **more)
        return done.stdout, done.stderr, done.returncode

    def start_counting(self, output, *options):
        """A step with an agent. Returns (srun, job id)."""
        srun, job = self.start_srun(NEVER, *options, *COUNT, output=output)
        self.wait_text(output, r"\n3\n")
        self.wait_connected(job)
        return srun, job

    def submit_counting(self, *options):
        """A batch job that counts, itself a step with an agent. Returns its id."""
        job = self.submit(f"exec {shlex.join(COUNT)}", NEVER, *options)
        self.wait_text(f"job-{job}.out", r"\n3\n")
        self.wait_connected(job)
        return job

    def status(self, job):
        """What icpctld knows of the steps of a job, as JSON."""
        return self.icp_json("status", str(job))["steps"]

    def icp_json(self, *words):
        done = self.cluster.run(["icp", *words, "--json"], check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {"steps": [], "error": done.stderr}

    def wait_connected(self, job, steps=1):
        def connected():
            known = [step for step in self.status(job) if step["running"]]
            return len(known) >= steps and all(len(step["nodes"]) == step["nodes_expected"] for step in known)
        self.wait_for(connected, 30, f"agents of job {job} to be connected; icpctld: {self.ctld_log()}")

    def ctld_log(self):
        return self.cluster.coordinator_log.read_text(errors="replace")[-2000:]

    def agents(self):
        """Pids of the step agents that run."""
        return [pid for pid in leftovers.processes(self.cluster.node_names)
                if leftovers.read(f"/proc/{pid}/comm").strip() == b"icpstepd"]

    @contextlib.contextmanager
    def slow_agents(self):
        """Agents that do nothing meanwhile: a round that began does not end."""
        pids = self.agents()
        self.assertTrue(pids)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
