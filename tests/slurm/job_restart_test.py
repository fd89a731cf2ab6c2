# SPDX-License-Identifier: GPL-2.0-or-later
"""Checkpoint, death, restart: of steps and of whole jobs, under real Slurm."""

import os
import pathlib
import re
import signal
import time

import harness
import leftovers
from jobcase import JobCase, PERL

MGS = ["mgs", "--rows", "200", "--columns", "60", "--step-ms", "100"]


class Restart(JobCase):
    def test_mgs_of_four_tasks(self):
        whole = self.sh(["srun", "-n4", *MGS, "--key", "77"]).stdout.splitlines()[-1]
        image = self.killed_run([*MGS, "--key", "77"], 4)
        result = self.sh(["srun", "-n4", f"--restart-dir={image}", "none"], timeout=90)
        self.assertEqual(result.stdout.splitlines()[-1], whole)
        self.assertRegex(result.stderr, r"(?m)^slurm-icp: step \d+\.0 restarted from version \d+ of .*/" + image +
                         r", taken 20[-0-9]+ [:0-9]+: 4 processes, [0-9.]+ [KM]iB; [0-9.]+ s of work after it were lost$")
        self.assertEqual(result.stderr.count("slurm-icp:"), 1)
        self.assertEqual(self.user_segments(), set())

    def test_exit_code_and_output_pass(self):
        image = self.killed_run(PERL, 1)
        first = self.text("first.out")
        result = self.srun(f"--restart-dir={image}", "none")
        self.assertEqual(result.returncode, 5, result.stderr)
        numbers = [int(n) for n in result.stdout.split()]
        self.assertEqual(numbers, list(range(numbers[0], 61)))
        self.assertIn(f"\n{numbers[0] - 1}\n", "\n" + first)

    def test_signals_reach_restored_processes(self):
        image = self.killed_run(PERL, 1)
        srun, job = self.start_srun(f"--restart-dir={image}", "none", output="again.out")
        self.wait_text("again.out", r"\n\d+\n")
        self.sh(["scancel", "-s", "USR1", f"{job}.0"])
        self.wait_text("again.out", "usr1")
        time.sleep(0.5)
        self.assertEqual(self.text("again.out").count("usr1"), 1)
        self.sh(["scancel", job])
        self.assertNotEqual(srun.wait(30), 0)
        self.nothing_runs("select undef")

    def test_death_by_signal_passes(self):
        image = self.killed_run(PERL, 1)
        srun, job = self.start_srun(f"--restart-dir={image}", "none", output="again.out")
        self.wait_text("again.out", r"\n\d+\n")
        for pid in self.pids_of("select undef"):
            os.kill(pid, signal.SIGUSR2)
        self.assertEqual(srun.wait(30), 128 + signal.SIGUSR2)
        self.nothing_runs("select undef")

    def test_time_limit_kills_restored_processes(self):
        image = self.killed_run(["perl", "-e", "$| = 1; while (1) { print qq(x\\n); sleep 1 }"], 1)
        job = self.submit(f"srun --restart-dir={image} none", "-t", "1")
        self.wait_text(f"job-{job}.out", "restarted from")
        self.cluster.run(["scontrol", "update", f"JobId={job}", "TimeLimit=0:05"], check=False)
        self.assertEqual(self.wait_job(job, timeout=150), "TIMEOUT")
        self.nothing_runs("while (1)")

    def test_wrong_task_count(self):
        image = self.killed_run(PERL, 1)
        result = self.srun("-n2", f"--restart-dir={image}", "none")
        self.assertNotEqual(result.returncode, 0)
        self.assertEqual(result.stdout, "")
        self.assertRegex(result.stderr, "holds 1 task, this step has 2; start it with srun -n1")

    def test_no_image(self):
        for directory in ("nowhere", "."):
            result = self.srun(f"--restart-dir={directory}/empty", "echo", "never")
            self.assertNotEqual(result.returncode, 0)
            self.assertEqual(result.stdout, "")
            self.assertIn("cannot restart", result.stderr)

    def test_restarted_step_is_checkpointed_and_restarted_again(self):
        image = self.killed_run(PERL, 1)
        for _ in range(2):
            srun, job = self.start_srun("--checkpoint-interval=1s", f"--restart-dir={image}", "none",
                                        output="again.out")
            image = f"{job}.0"
            self.wait_versions(image, 1)
            # Under linuxproc Slurm does not list restored processes, which are not below its slurmstepd.
            for pid in self.pids_of("select undef"):
                os.kill(pid, signal.SIGKILL)
            srun.wait(30)
        result = self.srun(f"--restart-dir={image}", "none")
        self.assertEqual(result.returncode, 5, result.stderr)
        self.assertEqual(result.stdout.split()[-1], "60")

    def pids_of(self, text):
        """Perl programs of this cluster whose text has `text`."""
        def is_one(pid):
            line = leftovers.read(f"/proc/{pid}/cmdline").split(b"\0")
            return line[0].endswith(b"perl") and any(text.encode() in word for word in line)
        return [pid for pid in leftovers.processes(self.cluster.node_names) if is_one(pid)]

    def nothing_runs(self, text):
        self.wait_for(lambda: not self.pids_of(text), 20, f"processes of {text} to end")


class LinuxProc(Restart):
    options = {"proctrack": "linuxproc"}


class Requeue(JobCase):
    def test_step_goes_on_after_requeue(self):
        job = self.submit("echo run ${SLURM_RESTART_COUNT:-0}; srun perl -e '$| = 1; for my $i (1 .. 50) "
                          "{ print qq($i\\n); select undef, undef, undef, 0.1 }'; echo end $?",
                          "--checkpoint-interval=1s")
        self.wait_versions(f"{job}.0", 2)
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED")
        text = self.output(job)
        second = text[text.index("run 1"):]
        self.assertIn(f"slurm-icp: step {job}.0 restarted from version", second)
        numbers = [int(n) for n in re.findall(r"^\d+$", second, re.M)]
        self.assertGreater(numbers[0], 5)
        self.assertEqual(numbers, list(range(numbers[0], 51)))
        self.assertIn("end 0", second)

    def test_batch_script_goes_on_after_requeue(self):
        job = self.submit("for i in $(seq 1 50); do echo $i; perl -e 'select undef, undef, undef, 0.1'; done",
                          "--checkpoint-interval=1s")
        self.wait_versions(f"{job}.batch", 2)
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED")
        text = self.output(job)
        self.assertIn(f"slurm-icp: step {job}.batch restarted from version", text)
        self.assertEqual(text.splitlines()[-1], "50")
        self.assertEqual(text.splitlines().count("1"), 1)

    def test_completed_step_is_not_restarted(self):
        job = self.submit("srun sh -c 'echo first; sleep 2.5'; echo run ${SLURM_RESTART_COUNT:-0}; "
                          "[ -n \"$SLURM_RESTART_COUNT\" ] || sleep 600", "--checkpoint-interval=1s")
        self.wait_text(f"job-{job}.out", "run 0")
        self.assertTrue((self.work / f"{job}.0" / "completed").exists())
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED")
        self.assertEqual(self.output(job).count("first"), 2)

    def test_restart_dir_none_starts_afresh(self):
        job = self.submit("echo run ${SLURM_RESTART_COUNT:-0}; srun --restart-dir=none perl -e '$| = 1; "
                          "for my $i (1 .. 30) { print qq($i\\n); select undef, undef, undef, 0.1 }'",
                          "--checkpoint-interval=1s")
        self.wait_versions(f"{job}.0", 1)
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED")
        self.assertIn("run 1\n1\n2\n", self.output(job))


    def test_a_count_of_another_job_in_the_environment_says_nothing(self):
        job = self.submit("srun perl -e 'print qq(whole\n)'", "--checkpoint-interval=1h", "--export=ALL,SLURM_RESTART_COUNT=3")
        self.assertEqual(self.wait_job(job), "COMPLETED")
        self.assertEqual(self.output(job), "whole\n")


class RequeueWithoutProlog(JobCase):
    """slurmd does not always run the prolog for a requeued job: what the plugin's has noted is taken away here."""
    options = {"extra_conf": f"Prolog={pathlib.Path(__file__).parent}/forget_run\n"}

    test_step_goes_on_after_requeue = Requeue.test_step_goes_on_after_requeue
    test_batch_script_goes_on_after_requeue = Requeue.test_batch_script_goes_on_after_requeue


class Refusal(JobCase):
    def test_what_cannot_be_checkpointed_is_said_once(self):
        program = "import time; opened = open('/proc/self/mem', 'r+b', 0); time.sleep(5)"
        result = self.sh(["srun", "--checkpoint-interval=1s", "python3", "-c", program])
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertRegex(lines[0], r"^slurm-icp: step \d+\.0: no checkpoint could be taken: .*descriptor 3")

    def test_success_is_silent_and_verbose_is_not(self):
        result = self.sh(["srun", "--checkpoint-interval=1s", "sleep", "3"])
        self.assertEqual(result.stderr, "")
        result = self.sh(["srun", "-v", "--checkpoint-interval=1s", "sleep", "3"])
        self.assertRegex(result.stderr, r"slurm-icp: step \d+\.0: version 1: 1 process, .* stopped for")

    def test_unwritable_directory_is_said_once_and_the_job_runs(self):
        result = self.sh(["srun", "--checkpoint-interval=1s", "--checkpoint-dir=/proc/nowhere", "sh", "-c",
                          "sleep 3; echo fine"])
        self.assertEqual(result.stdout, "fine\n")
        self.assertEqual(result.stderr.count("slurm-icp:"), 1, result.stderr)


if __name__ == "__main__":
    harness.main()
