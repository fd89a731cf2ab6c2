# SPDX-License-Identifier: GPL-2.0-or-later
"""--checkpoint-files: what a step has done by name in a directory comes back with its versions."""

import unittest

import harness
import jobcase

# In DIR, by name alone: a line in `notes` for each step, a file for each step, of which the last three are kept.
STEPS = ("perl -e '$| = 1; chdir shift; for my $i (1 .. 60) { open F, q(>>notes) or die; print F qq($i\\n); close F; "
         "open F, qq(>step.$i) or die; close F; unlink q(step.) . ($i - 3); print qq($i\\n); "
         "select undef, undef, undef, 0.1 }' ")


class ByName(jobcase.JobCase):
    def check(self, job, directory):
        self.assertEqual(self.wait_job(job, timeout=120), "COMPLETED", self.output(job))
        self.assertIn(f"step {job}.0 restarted from version", self.output(job))
        self.assertEqual((directory / "notes").read_text().split(), [str(i) for i in range(1, 61)], self.output(job))
        self.assertEqual(sorted(p.name for p in directory.iterdir()), ["notes", "step.58", "step.59", "step.60"])

    def directory(self, name):
        path = self.work / name
        self.sh(["mkdir", str(path)])
        return path

    def requeued(self, script, *options):
        job = self.submit(script, "--checkpoint-interval=1s", *options)
        self.wait_versions(f"{job}.0", 2)
        self.cluster.run(["scontrol", "requeue", str(job)])
        return job

    def test_a_directory_is_as_it_was_after_a_requeue(self):
        directory = self.directory("kept")
        self.check(self.requeued("srun " + STEPS + str(directory), f"--checkpoint-files=dir:{directory}"), directory)

    def test_by_the_environment_of_the_step(self):
        directory = self.directory("kept2")
        script = f"export SLURM_CHECKPOINT_FILES=open,dir:{directory}\nsrun " + STEPS + str(directory)
        self.check(self.requeued(script), directory)

    def test_what_cannot_be_kept_is_said_and_the_job_runs_on(self):
        result = self.sh(["srun", "--checkpoint-interval=1s", "--checkpoint-files=dir:/proc", "sleep", "3"])
        self.assertRegex(result.stderr, "no checkpoint could be taken: .*/proc, which is to be kept.*; .*--checkpoint-files")

    def test_wrong_values_are_refused_at_submission(self):
        for wrong in ("all", "dir:relative", "open,", "dir:"):
            for command in (["srun", f"--checkpoint-files={wrong}", "true"],
                            ["sbatch", f"--checkpoint-files={wrong}", "--wrap", "true"]):
                result = self.sh(command, check=False)
                self.assertNotEqual(result.returncode, 0)
                self.assertIn(f'--checkpoint-files: "{wrong}" is not none, open, or dir:PATH', result.stderr)


if __name__ == "__main__":
    harness.main()
