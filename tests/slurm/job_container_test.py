# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs with a /tmp of their own (job_container/tmpfs): a restored step is in the new job's mount namespace."""

import unittest

import harness
from jobcase import JobCase

# Appends to a file in /tmp, and says after each line how many there are.
WRITER = ["perl", "-e", "$| = 1; open my $f, '+>>', '/tmp/icp-private' or die; $f->autoflush(1); "
          "for my $i (1 .. 60) { print $f qq($i\\n); print qq($i\\n); select undef, undef, undef, 0.1 } "
          "open my $g, '<', '/tmp/icp-private' or die; my @lines = <$g>; print 'lines ', scalar @lines, qq(\\n)"]


class PrivateTmp(JobCase):
    options = {"extra_conf": "JobContainerType=job_container/tmpfs",
               "conf_files": {"job_container.conf": "AutoBasePath=true\nBasePath={state}/containers\n"}}

    def test_restart_in_the_same_job(self):
        script = self.work / "twice.sh"
        quoted = " ".join(f"'{word}'" if " " not in word else '"$WRITER"' for word in WRITER)
        script.write_text(
            "#!/bin/bash\n"
            f"WRITER=$(cat {self.work}/writer)\n"
            f"srun --checkpoint-interval=0.5s --checkpoint-dir={self.work}/images {quoted} >{self.work}/first.out &\n"
            f"until [[ -d {self.work}/images/$SLURM_JOB_ID.0/v000002 ]]; do sleep 0.1; done\n"
            "scancel -s KILL $SLURM_JOB_ID.0; wait\n"
            f"exec srun --restart-dir={self.work}/images/$SLURM_JOB_ID.0 true >{self.work}/second.out\n")
        (self.work / "writer").write_text(WRITER[2])
        script.chmod(0o755)
        result = self.sh(["salloc", "-n1", str(script)], check=False, timeout=90)
        out = (self.work / "second.out").read_text() if (self.work / "second.out").exists() else ""
        self.assertEqual(result.returncode, 0, result.stderr + self.agent_log()[-2000:])
        self.assertTrue(out.endswith("60\nlines 60\n"), out)
        self.assertFalse(out.startswith("1\n"), "it began anew")
        self.wait_clean()

    def test_what_is_kept_is_there_in_the_next_run(self):
        # Which has a /tmp of its own, with nothing in it.
        (self.work / "writer").write_text(WRITER[2].replace("/tmp/icp-private", "/tmp/kept/file"))
        job = self.submit("[ -n \"$SLURM_RESTART_COUNT\" ] || mkdir -m 0750 /tmp/kept; "
                          f"srun perl -e \"$(cat {self.work}/writer)\"; stat -c 'mode %a' /tmp/kept",
                          "--checkpoint-interval=1s", "--checkpoint-files=dir:/tmp/kept")
        self.wait_versions(f"{job}.0", 2)
        self.cluster.run(["scontrol", "requeue", str(job)])
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED")
        out = self.output(job)
        self.assertIn(f"step {job}.0 restarted from version", out)
        self.assertTrue(out.endswith("60\nlines 60\nmode 750\n"), out)

    def test_other_jobs_do_not_see_it(self):
        self.sh(["srun", "-n1", "sh", "-c", "echo mine >/tmp/icp-mine"])
        result = self.srun("-n1", "ls", "/tmp/icp-mine")
        self.assertNotEqual(result.returncode, 0, "there is no private /tmp in this cluster")


if __name__ == "__main__":
    harness.main()
