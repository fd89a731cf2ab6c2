# SPDX-License-Identifier: GPL-2.0-or-later
"""Versions when Slurm ends a job: --checkpoint-on=preempt,cancel. The process Slurm knows is a guard then."""

import json
import re
import signal

import harness
from coordinated import Coordinated
from jobcase import JobCase

# Counts into a file of its own, and says every tenth number. What srun has on its way when it is killed is lost.
COUNT = ("perl -e '$| = 1; open F, qq(>>count.$ENV{{SLURM_JOB_ID}}.$ENV{{SLURM_PROCID}}); F->autoflush(1); "
         "for my $i (1 .. {}) {{ print F qq($i\\n); print qq($i\\n) if $i % 10 == 0; "
         "select undef, undef, undef, 0.1 }}'")
# Ends with status 3 when it is told to end.
POLITE = ["perl", "-e", "$| = 1; $SIG{TERM} = sub { print qq(told to end\\n); exit 3 }; $SIG{USR1} = sub { print qq(usr1\\n) };"
          "for (1 .. 300) { print qq($_\\n); select undef, undef, undef, 0.1 }"]


class Counting(JobCase):
    def check_count(self, job, last, tasks=1):
        for rank in range(tasks):
            counted = self.text(f"count.{job}.{rank}").split()
            self.assertEqual(counted, [str(i) for i in range(1, last + 1)], self.output(job))


class Preempted(Counting):
    def check_goes_on(self, script, counts=True):
        job = self.submit(script, "--checkpoint-on=preempt")
        self.wait_text(f"job-{job}.out", r"(^|\n)20\n")
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        self.assertIn("restarted from version 1", self.output(job))
        if counts:
            self.check_count(job, 60)
        return self.output(job)

    def test_a_requeued_job_loses_nothing(self):
        self.assertIn("end 0", self.check_goes_on(f"srun {COUNT.format(60)}; echo end $?"))

    def test_a_shell_with_children(self):
        text = self.check_goes_on("srun bash -c 'for i in $(seq 60); do echo $i; perl -e \"select undef, undef, undef, "
                                  "0.1\"; done'", counts=False)
        self.assertEqual(text.split()[-1], "60")

    def test_a_script_without_steps(self):
        self.check_goes_on(COUNT.format(60))

    def test_twice(self):
        job = self.submit(f"srun {COUNT.format(90)}; echo end $?", "--checkpoint-on=preempt")
        for number in (20, 50):
            self.wait_text(f"job-{job}.out", rf"(^|\n){number}\n", 60)
            self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        self.check_count(job, 90)
        self.assertIn("restarted from version 2", self.output(job))


class ByPartition(Counting):
    options = {"cpus": 2,
               "extra_conf": "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n"
                             "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF\n"
                             "PartitionName=low Nodes=ALL PriorityTier=1\n"
                             "PartitionName=grace Nodes=ALL PriorityTier=1 GraceTime=5\n"
                             "PartitionName=grace30 Nodes=ALL PriorityTier=1 GraceTime=30\n"}

    def test_a_preempted_job_loses_nothing(self):
        # Slurm looks twice a minute whose GraceTime is over.
        for partition, last in (("low", 60), ("grace", 600), ("grace30", 900)):
            job = self.submit(f"srun {COUNT.format(last)}; echo end $?", "-n2", "-p", partition, "--checkpoint-on=preempt")
            self.wait_text(f"job-{job}.out", r"\n20\n")
            self.sh(["srun", "-p", "high", "-n2", "sleep", "1"], timeout=150)
            # A job preempted with a GraceTime is requeued once more at its end by Slurm 24.11, whatever its exit code.
            self.wait_text(f"job-{job}.out", "\nend 0\n", 120)
            if partition == "low":
                self.assertEqual(self.wait_job(job), "COMPLETED", self.output(job))
            self.assertIn("restarted from version 1", self.output(job))
            self.check_count(job, last, 2)
            self.assertIn("end 0", self.output(job))


BY_PARTITION = ("PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n"
                "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF\n"
                "PartitionName=low Nodes=ALL PriorityTier=1\n")


class Cancelled(Coordinated):
    """PreemptMode=CANCEL: Slurm ends the job for good, and icpctld requeues it."""
    options = {"nodes": 1, "cpus": 2, "coordinator": True,
               "extra_conf": BY_PARTITION + "PartitionName=lost Nodes=ALL PriorityTier=1 PreemptMode=CANCEL\n"
                             "PartitionName=graceful Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=5\n"}

    def preempt(self, script, *options):
        job = self.submit(script, "-n2", *options)
        self.wait_text(f"job-{job}.out", r"(^|\n)20\n")
        self.sh(["srun", "-p", "high", "-n2", "sleep", "1"], timeout=100)
        return job

    def test_a_preempted_job_loses_nothing(self):
        for partition in ("lost", "graceful"):
            job = self.preempt(f"srun -n1 {COUNT.format(400)}; echo end $?", "-p", partition, "--checkpoint-on=preempt")
            self.wait_text(f"job-{job}.out", "restarted from version 1 of", 90)
            self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
            counted = self.text(f"count.{job}.0").split()
            self.assertEqual(counted, [str(i) for i in range(1, 401)], self.output(job))
            first = json.loads(self.cluster.run(["icp", "history", str(job), "--json"]).stdout)["runs"][0]
            self.assertEqual((first["why"], first["work_lost_ms"]), ("preempted, and requeued by icpctld", 0), first)

    def test_others_stay_as_slurm_leaves_them(self):
        """Who did not ask for it, and who must not be requeued."""
        for options in (["--checkpoint-interval=1h"], ["--checkpoint-on=preempt", "--no-requeue"]):
            job = self.preempt(f"srun -n1 {COUNT.format(400)}", "-p", "lost", *options)
            self.assertEqual(self.wait_job(job, "PREEMPTED", timeout=60), "PREEMPTED")
            self.assertNotIn("restarted", self.output(job))


class Many(Counting):
    """All jobs of a partition are preempted at once."""
    JOBS = 12
    SCRIPT = f"srun {COUNT.format(100)}; echo end $?"
    PATIENCE = 60
    options = {"cpus": JOBS, "coordinator": True, "extra_conf": BY_PARTITION}

    def test_none_loses_anything(self):
        jobs = [self.submit(self.SCRIPT, "-n1", "-p", "low", "--checkpoint-on=preempt") for _ in range(self.JOBS)]
        for job in jobs:
            self.wait_text(f"job-{job}.out", r"(^|\n)20\n", self.PATIENCE)
        self.sh(["srun", "-p", "high", f"-n{self.JOBS}", "sleep", "1"], timeout=40 + self.PATIENCE)
        for job in jobs:
            self.assertEqual(self.wait_job(job, timeout=90 + self.PATIENCE), "COMPLETED", self.output(job))
            self.assertIn("restarted from version 1", self.output(job))
            self.check_count(job, 100)


class Fifty(Many):
    """So many that they do not fit into KillWait one after the other: some megabytes each, without srun."""
    JOBS = 50
    SCRIPT = COUNT.format(100).replace("SLURM_PROCID", "RANK")
    PATIENCE = 200
    options = {"cpus": JOBS, "coordinator": True, "extra_conf": BY_PARTITION + "KillWait=30\n"}

    def check_count(self, job, last, tasks=1):
        counted = self.text(f"count.{job}.").split()
        self.assertEqual(counted, [str(i) for i in range(1, last + 1)], self.output(job))


class SeveralNodes(Coordinated):
    """SIGTERM on each node: icpctld lets all take one version."""

    def submit_ring(self, where, *options):
        job = self.submit(f"echo run ${{SLURM_RESTART_COUNT:-0}}; srun {' '.join(self.ring(where, 400, 20))}; echo end $?", "-N2", "-n2",
                          "--checkpoint-on=preempt", *options)
        self.wait_for(lambda: len(self.ring_pids()) == 2, 30, "the ring to begin")
        self.wait_for(lambda: re.search(rf"step {job}\.0: 2 agents", self.ctld_log()), 30, "both agents")
        return job

    def test_a_requeued_job_loses_nothing(self):
        job = self.submit_ring("twice")
        for version in (1, 2):
            self.cluster.run(["scontrol", "requeue", job])
            self.wait_text(f"job-{job}.out", f"restarted from version {version} of", 60)
            self.assertEqual(self.whole_versions(f"{job}.0"), list(range(1, version + 1)))
        self.hurry()
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        text = self.output(job)
        self.assertEqual(self.results(text), self.answer(400), text)
        self.assertEqual(text.count("restarted from version"), 4, text)  # each node says so
        runs = json.loads(self.cluster.run(["icp", "history", str(job), "--json"]).stdout)["runs"]
        self.assertEqual([run["work_lost_ms"] for run in runs[:2]], [0, 0], runs)
        self.assertIn("end 0", text)

    def test_beside_versions_at_an_interval(self):
        job = self.submit_ring("beside", "--checkpoint-interval=0.2s")
        self.wait_whole(f"{job}.0", 3)
        self.cluster.run(["scontrol", "requeue", job])
        taken = int(self.wait_text(f"job-{job}.out", r"restarted from version (\d+) of", 60).group(1))
        log = re.findall(rf"{job}\.0: version (\d+)", self.agent_log().split(f"{job}.0: restart from /")[0])
        self.assertEqual(taken, max(map(int, log)))
        self.hurry()
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        self.assertEqual(self.results(self.output(job)), self.answer(400))

    def test_without_icpctld_the_signal_comes_at_once(self):
        srun, job = self.start_srun("-N2", "-n2", "--checkpoint-on=cancel", *POLITE)
        self.wait_text("srun.out", r"\n10\n")
        self.cluster.kill_coordinator()
        try:
            self.sh(["scancel", job])
            srun.wait(30)
            self.assertEqual(self.text("srun.out").count("told to end"), 2)
        finally:
            self.cluster.start_coordinator()

    def test_a_version_that_cannot_be_taken(self):
        """The signal comes all the same."""
        srun, job = self.start_srun("-N2", "-n2", "--checkpoint-on=cancel", *POLITE)
        self.wait_text("srun.out", r"\n10\n")
        self.cluster.run(["icp", "disable", str(job)])
        self.sh(["scancel", job])
        srun.wait(30)
        self.assertEqual(self.text("srun.out").count("told to end"), 2)
        self.assertEqual(self.whole_versions(f"{job}.0"), [])


class Guarded(JobCase):
    def test_the_program_gets_the_signal_after_the_version(self):
        srun, job = self.start_srun("--checkpoint-on=cancel", *POLITE)
        self.wait_text("srun.out", r"\n10\n")
        self.sh(["scancel", "-s", "USR1", f"{job}.0"])
        self.wait_text("srun.out", "usr1")
        self.sh(["scancel", job])
        srun.wait(30)
        text = self.text("srun.out")
        self.assertIn("told to end", text)
        self.assertEqual(self.versions(f"{job}.0"), [1])
        again = self.start(["srun", f"--restart-dir={job}.0", "none"], "again.out")
        self.wait_text("again.out", r"\n\d+\n")
        again.terminate()
        again.wait(30)

    def test_ends_pass_through(self):
        for program, status in (("exit 7", 7), ("kill -SEGV $$", 128 + signal.SIGSEGV), ("true", 0)):
            result = self.srun("--checkpoint-on=cancel", "sh", "-c", program)
            self.assertEqual(result.returncode, status, result.stderr)
        result = self.sh("echo some input | srun --checkpoint-on=cancel cat", timeout=60)
        self.assertEqual(result.stdout, "some input\n")
        result = self.srun("--checkpoint-on=cancel", "-n2", "no-such-program")
        self.assertEqual(result.returncode, 2, result.stderr)

    def test_nothing_is_left_of_a_killed_step(self):
        srun, job = self.start_srun("--checkpoint-on=cancel", "sleep", "600")
        self.sh(["scancel", "-s", "KILL", job])
        srun.wait(30)
        self.wait_for(lambda: not self.step_pids(job), 20, "the end of all processes")


class LinuxProc(JobCase):
    options = {"proctrack": "linuxproc"}

    def test_what_is_reduced_is_said(self):
        result = self.srun("--checkpoint-on=preempt", "sh", "-c", "exit 7")
        self.assertEqual(result.returncode, 7)
        self.assertIn("no version before signals: that needs proctrack/cgroup", result.stderr)


if __name__ == "__main__":
    harness.main()
