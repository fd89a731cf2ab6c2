# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs that go on through their time limits: --checkpoint-on=timelimit."""

import re

import harness
from chaincase import ChainCase
from coordinated import Coordinated

# Counts tenths of seconds: more than one run's time.
LONG = ("perl -e '$| = 1; for my $i (1 .. {}) {{ print qq($i\\n) if $i % 10 == 0; select undef, undef, undef, 0.1 }}'")


class TimeLimit(Coordinated):
    options = {"nodes": 1, "coordinator": True}
    config = "jitter: 0\nrequeue_margin: 25s\n"

    def test_a_batch_job_chains_through_its_time_limits(self):
        script = self.submit(f"echo run ${{SLURM_RESTART_COUNT:-0}}; {LONG.format(500)}; echo end", "-t", "1",
                             "--checkpoint-on=timelimit")
        step = self.submit(f"echo run ${{SLURM_RESTART_COUNT:-0}}; srun {LONG.format(500)}; echo end $?", "-t", "1",
                           "--checkpoint-on=timelimit", "--checkpoint-interval=10s")
        never = self.submit(f"srun {LONG.format(3000)}", "-t", "1", "--checkpoint-on=timelimit", "--requeue-max=0")
        srun, alone = self.start_srun("-t", "1", "--checkpoint-on=timelimit", "bash", "-c", LONG.format(3000), output="alone.out")
        for job, again in ((script, 0), (step, 1)):
            self.assertEqual(self.wait_job(job, timeout=200), "COMPLETED", self.output(job))
            text = self.output(job)
            self.assertEqual([int(n) for n in re.findall(r"^\d+$", text, re.M)], list(range(10, 501, 10)), text)
            self.assertIn("the time limit is near: a version is taken, and the job requeued", text)
            restarts = text.count("restarted from version")
            self.assertIn(restarts, (1, 2))
            self.assertEqual(len(re.findall(r"^run", text, re.M)), 1 + again * restarts)
            self.assertRegex(text, r"\nend")
        self.assertEqual(self.wait_job(never, timeout=100), "TIMEOUT")
        self.assertRegex(self.output(never), rf"slurm-icp: step {never}\.0: the time limit is near; a version was taken: "
                                             rf"srun --restart-dir=\S+/{never}\.0 ... goes on from it")
        self.assertEqual(self.versions(f"{never}.0"), [1])
        srun.wait(60)
        self.assertRegex(self.text("alone.out"), rf"slurm-icp: step {alone}\.0: the time limit is near; a version was taken: "
                                                 rf"srun --restart-dir=\S+/{alone}\.0 ... goes on from it")

    def test_wrong_words_are_refused_at_submission(self):
        for option, said in (("--checkpoint-on=tomorrow", r'"tomorrow" is not WHEN\[,WHEN...\], where WHEN is timelimit'),
                             ("--checkpoint-on=", "is not WHEN"), ("--requeue-max=often", '"often" is not a number')):
            result = self.sh(["sbatch", option, "--wrap", "true"], check=False)
            self.assertNotEqual(result.returncode, 0)
            self.assertRegex(result.stderr, said)


class Chain(ChainCase):
    config = "jitter: 0\nrequeue_margin: 25s\n"

    def test_three_limits_cost_no_processor_time(self):
        # A minute's limit is seen to after half of it. The margin is that of a loaded machine's caches.
        self.check_chain(seconds=120, minutes=1, restarts=3, most=1.15, timeout=400)


if __name__ == "__main__":
    harness.main()
