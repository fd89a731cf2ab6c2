# SPDX-License-Identifier: GPL-2.0-or-later
"""A version before a signal that is to tell a program something: --checkpoint-on=signal, of the job's --signal and of scancel."""

import re

import harness
from coordinated import Coordinated
from jobcase import JobCase
from preempt_test import COUNT

# Ends of SIGUSR1, as who has saved what counts does; it says what it had done.
_ENDS = ("perl -e '$| = 1; $SIG{{USR1}} = sub {{ print qq(told\\n); exit 3 }}; $SIG{{USR2}} = sub {{ print qq(usr2\\n) }};"
        "for my $i (1 .. {}) {{ print qq($i\\n); select undef, undef, undef, 0.1 }}'")
ENDS, LONGER = (_ENDS.format(last) for last in (80, 450))


class Signals(JobCase):
    def wait_told(self, output, version, signal, word, timeout=30):
        """Of the version and by the program: in two streams, hence in any order."""
        self.wait_text(output, rf"version {version} was taken when {signal} came\n", timeout)
        self.wait_text(output, rf"(^|\n){word}\n")

    def test_the_jobs_signal(self):
        # Slurm looks twice a minute whose signal is due; a script that requeues its job does the rest.
        script = f"srun {LONGER}; s=$?; [ $s = 0 ] && exit; scontrol requeue $SLURM_JOB_ID; sleep 60"
        job = self.submit(script, "-t", "2", "--signal=USR1@115", "--checkpoint-on=signal")
        self.wait_told(f"job-{job}.out", 1, "SIGUSR1", "told", 60)
        self.assertEqual(self.wait_job(job, timeout=200), "COMPLETED", self.output(job))
        self.assertIn("restarted from version 1 of", self.output(job))
        said = [int(n) for n in re.findall(r"^\d+$", self.output(job), re.M)]
        self.assertEqual(sorted(set(said)), list(range(1, 451)), self.output(job))

    def test_of_scancel_and_again(self):
        srun, job = self.start_srun("--checkpoint-on=signal", "sh", "-c", f"exec {ENDS}")
        self.wait_text("srun.out", r"\n10\n")
        self.sh(["scancel", "-s", "USR2", f"{job}.0"])
        self.wait_told("srun.out", 1, "SIGUSR2", "usr2")
        self.sh(["scancel", "-s", "USR1", f"{job}.0"])
        self.assertEqual(srun.wait(30), 3)
        text = self.text("srun.out")
        self.assertRegex(text, r"version 2 was taken when SIGUSR1 came\n")
        self.assertRegex(text, r"\ntold\n")
        self.assertEqual(self.versions(f"{job}.0"), [1, 2])
        again = self.srun(f"--restart-dir={job}.0", "none")
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(again.stdout.split()[-1], "80")
        # Of the restored one icp-proxy gets it.
        srun, second = self.start_srun(f"--restart-dir={job}.0", "--checkpoint-on=signal", "none", output="second.out")
        self.wait_text("second.out", r"\n\d+\n")
        self.sh(["scancel", "-s", "USR2", f"{second}.0"])
        self.wait_told("second.out", 1, "SIGUSR2", "usr2")
        self.assertEqual(srun.wait(30), 0, self.text("second.out"))

    def test_others_are_not_asked_for(self):
        """Without the word, and SIGTERM with it: at once."""
        for options, words in (("--checkpoint-on=cancel",), ["-s", "USR1"]), (("--checkpoint-on=signal",), []):
            srun, job = self.start_srun(*options, "sh", "-c", f"exec {ENDS}")
            self.wait_text("srun.out", r"\n5\n")
            self.sh(["scancel", *words, f"{job}.0"])
            srun.wait(30)
            self.assertNotIn("was taken", self.text("srun.out"))
            self.assertEqual(self.versions(f"{job}.0"), [])

    def test_a_requeue_goes_on_from_it(self):
        job = self.submit(f"srun {COUNT.format(60)}; echo end $?", "--checkpoint-on=signal")
        self.wait_text(f"job-{job}.out", r"(^|\n)20\n")
        self.sh(["scancel", "-s", "URG", f"{job}.0"])  # ignored by who knows nothing of it
        self.wait_text(f"job-{job}.out", r"version 1 was taken when SIGURG came")
        self.wait_text(f"job-{job}.out", r"\n40\n")
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        self.assertRegex(self.output(job), r"restarted from version 1 of .*; \d+\.\d s of work after it were lost\n")
        self.assertIn("end 0", self.output(job))

    def test_the_batch_script(self):
        job = self.submit(f"exec {ENDS}", "--checkpoint-on=signal")
        self.wait_text(f"job-{job}.out", r"\n10\n")
        self.sh(["scancel", "-b", "-s", "USR2", job])
        self.wait_told(f"job-{job}.out", 1, "SIGUSR2", "usr2")
        self.assertEqual(self.wait_job(job, timeout=60), "COMPLETED", self.output(job))


class SeveralNodes(Coordinated):
    def test_one_version_of_all(self):
        job = self.submit(f"srun {' '.join(self.ring('signal', 400, 20))}; echo end $?", "-N2", "-n2", "--checkpoint-on=signal")
        self.wait_for(lambda: re.search(rf"step {job}\.0: 2 agents", self.ctld_log()), 30, "both agents")
        self.wait_text(f"job-{job}.out", r"at 50")
        self.sh(["scancel", "-s", "URG", f"{job}.0"])
        self.wait_text(f"job-{job}.out", r"version 1 was taken when SIGURG came")
        self.assertEqual(self.whole_versions(f"{job}.0"), [1])
        self.cluster.run(["scontrol", "requeue", job])
        self.wait_text(f"job-{job}.out", "restarted from version 1 of", 60)
        self.hurry()
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        self.assertEqual(self.results(self.output(job)), self.answer(400), self.output(job))

    def test_without_icpctld_the_signal_comes_at_once(self):
        srun, job = self.start_srun("-N2", "-n2", "--checkpoint-on=signal", "sh", "-c", f"exec {ENDS}")
        self.wait_text("srun.out", r"\n10\n")
        self.cluster.kill_coordinator()
        try:
            self.sh(["scancel", "-s", "USR1", f"{job}.0"])
            srun.wait(30)
            self.assertEqual(self.text("srun.out").count("told"), 2)
        finally:
            self.cluster.start_coordinator()


if __name__ == "__main__":
    harness.main()
