# SPDX-License-Identifier: GPL-2.0-or-later
"""The options: where they are taken, what is refused, and that nobody else notices the plugin."""

import unittest

import harness
from jobcase import JobCase

GRAMMAR = r"minutes, minutes:seconds, hours:minutes:seconds"


class Options(JobCase):
    def refused(self, words, sentence, **more):
        result = self.sh(words, check=False, **more)
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stderr, sentence)
        self.assertEqual(result.stdout, "")

    def test_bad_intervals_are_refused_with_the_grammar(self):
        for value in ("soon", "0", "-5", "10x", "1:2:3:4", ""):
            for option in ("--checkpoint-interval", "--checkpoint"):
                with self.subTest(value=value, option=option):
                    self.refused(["srun", f"{option}={value}", "hostname"], GRAMMAR)
        self.refused(["sbatch", "--checkpoint-interval=soon", "--wrap=true"], GRAMMAR)
        self.refused(["salloc", "--checkpoint-interval=soon", "true"], GRAMMAR)

    def test_bad_values_in_the_environment_are_refused(self):
        self.refused(["srun", "hostname"], "SLURM_CHECKPOINT: .*" + GRAMMAR,
                     env={"SLURM_CHECKPOINT": "soon"})
        self.refused(["sbatch", "--wrap=true"], "SBATCH_CHECKPOINT: .*" + GRAMMAR,
                     env={"SBATCH_CHECKPOINT": "soon"})

    def test_bad_directories_are_refused(self):
        self.refused(["srun", "--checkpoint-dir=", "hostname"], "a directory is needed")
        self.refused(["srun", "--restart-dir=", "hostname"], "a directory is needed")

    def test_mpi_is_kept_on_tcp_when_asked(self):
        self.refused(["srun", "--checkpoint-mpi=rdma", "hostname"], '"rdma" is not one of tcp, auto and off')
        self.refused(["srun", "hostname"], "SLURM_CHECKPOINT_MPI: .*one of tcp", env={"SLURM_CHECKPOINT_MPI": "yes"})
        show = ["sh", "-c", "echo ${UCX_TLS-none} ${FI_PROVIDER-none} ${OMPI_MCA_pml-none}"]
        asked = ["srun", "-Q", "--checkpoint-interval=1h"]
        for words, env, text in ((["--checkpoint-mpi=tcp"], {}, "tcp,self,posix,sysv,cma tcp ob1"),
                                 (["--checkpoint-mpi=tcp"], {"UCX_TLS": "self"}, "self tcp ob1"),
                                 ([], {"SLURM_CHECKPOINT_MPI": "tcp"}, "tcp,self,posix,sysv,cma tcp ob1"),
                                 (["--checkpoint-mpi=off"], {}, "none none none")):
            with self.subTest(words=words, env=env):
                result = self.sh(asked + words + show, env=env)
                self.assertEqual((result.stdout, result.stderr), (text + "\n", ""))
        # A step that asks for no checkpoints is as without.
        self.assertEqual(self.sh(["srun", "--checkpoint-mpi=tcp"] + show).stdout, "none none none\n")

    def test_bad_directive_in_a_script(self):
        script = self.work / "bad.sh"
        script.write_text("#!/bin/bash\n#SBATCH --checkpoint-interval=soon\ntrue\n")
        self.refused(["sbatch", script], GRAMMAR)

    def test_a_job_that_asks_for_nothing_is_as_without(self):
        result = self.sh(["srun", "-n3", "sh", "-c", "echo out; echo err >&2; env | grep -i checkpoint; ls /proc/self/fd | wc -l"])
        self.assertEqual(sorted(result.stdout.split()), sorted(["out", "4"] * 3))
        self.assertEqual(result.stderr, "err\n" * 3)
        self.assertEqual(self.srun("sh", "-c", "exit 7").returncode, 7)
        self.wait_clean()

    def test_interval_and_directory_reach_every_kind_of_step(self):
        """Relative directories are meant from where the command was typed, also by an inner srun elsewhere."""
        script = ("#SBATCH --checkpoint-interval=10m --checkpoint-dir=here\n"
                  "cd /; srun sh -c 'echo step $SLURM_CHECKPOINT $SLURM_CHECKPOINT_DIR'")
        job = self.submit("#!/bin/bash\n" + script)
        self.assertEqual(self.wait_job(job), "COMPLETED")
        self.assertEqual(self.output(job), f"step 10m {self.work}/here\n")
        self.assertIn(f"{job}.0: user", self.agent_log())
        self.assertIn(f"{job}.batch: user", self.agent_log())
        result = self.sh("salloc -Q --checkpoint=90s srun sh -c 'echo $SLURM_CHECKPOINT $SLURM_JOB_ID'")
        self.assertTrue(result.stdout.startswith("90s "), result)
        self.assertIn(f"{result.stdout.split()[1]}.0: user", self.agent_log())

    def test_unknown_plugin_argument_breaks_nothing(self):
        self.cluster.set_plugin_args("config={etc}/icp.yaml icpstepd={bin}/icpstepd colour=red")
        try:
            result = self.sh(["srun", "echo", "fine"])
            self.assertEqual(result.stdout, "fine\n")
            self.assertIn("unknown argument 'colour=red'", result.stderr)
        finally:
            self.cluster.set_plugin_args("config={etc}/icp.yaml icpstepd={bin}/icpstepd")

    def test_missing_icpstepd_is_said_and_the_job_runs(self):
        self.cluster.set_plugin_args("config={etc}/icp.yaml icpstepd=/nonexistent/icpstepd")
        try:
            result = self.sh(["srun", "-n2", "--checkpoint-interval=1m", "echo", "fine"])
            self.assertEqual(result.stdout, "fine\n" * 2)
            self.assertEqual(result.stderr.count("no checkpoints of this step"), 1)
            result = self.srun("--restart-dir=/tmp", "echo", "never")
            self.assertNotEqual(result.returncode, 0)
            self.assertEqual(result.stdout, "")
            self.assertIn("cannot restart", result.stderr)
            self.assertEqual(set(self.cluster.node_states().values()) & {"drained", "draining", "down"}, set())
        finally:
            self.cluster.set_plugin_args("config={etc}/icp.yaml icpstepd={bin}/icpstepd")
        self.sh(["srun", "true"])  # the ledgers that no epilog could clean
    
    def test_wrong_configuration_is_said_and_the_job_runs(self):
        self.cluster.set_icp_config("no_such_key: 1\n")
        try:
            result = self.sh(["srun", "--checkpoint-interval=1m", "echo", "fine"])
            self.assertEqual(result.stdout, "fine\n")
            self.assertRegex(result.stderr, r"icp\.yaml:\d+: no_such_key: unknown key")
        finally:
            self.cluster.set_icp_config(f"log: {self.cluster.log_dir}/icpstepd.log\n")


if __name__ == "__main__":
    harness.main()
