# SPDX-License-Identifier: GPL-2.0-or-later
"""What a step's environment says is the user's word: root makes no path of it, and no job leaves its namespace by it."""

import os
import pathlib
import subprocess
import time

import harness
from jobcase import JobCase


class Environment(JobCase):
    """srun is the user's own program: a copy of its library leaves a variable of Slurm's as it finds it."""
    options = {"nodes": 1}

    def own_srun(self):
        listed = subprocess.run(["ldd", self.cluster.run(["which", "srun"]).stdout.strip()], capture_output=True, text=True, check=True)
        source = next(word for word in listed.stdout.split() if word.startswith("/") and "libslurmfull" in word)
        copy = self.cluster.lib_dir / "libslurmfull.so"
        copy.write_bytes(pathlib.Path(source).read_bytes().replace(b"SLURM_STEP_NODELIST\0", b"SLURM_XTEP_NODELIST\0"))
        copy.chmod(0o755)
        return str(copy)

    def step(self, node, *words):
        return self.cluster.run(["srun", "--checkpoint-interval=1h", *words], user=self.cluster.user, check=False,
                                env={"LD_PRELOAD": self.own_srun(), "SLURM_STEP_NODELIST": node}, timeout=60)

    def test_node_names(self):
        host = os.readlink("/proc/self/ns/ipc")
        up = "../" * (len(self.cluster.icp_run_dir.parts) - 1)
        made = pathlib.Path("/etc/icp-test-made-by-root")
        self.addCleanup(lambda: made.exists() and made.rmdir())
        for node in (up + "etc/" + made.name, "..", "/tmp", "a\nb", "\x1b[2J", "x" * 60000):
            with self.subTest(node=node[:40]):
                result = self.step(node, "sh", "-c", "printf %.10s \"$SLURM_STEP_NODELIST\"; echo; readlink /proc/self/ns/ipc")
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn(node[:10], result.stdout, "the variable came through as it was")
                self.assertNotIn(host, result.stdout)
                self.assertFalse(made.exists())
        self.wait_clean()
        self.assertEqual([p.name for p in self.cluster.icp_run_dir.iterdir()], self.cluster.node_names)

    def test_fifo_holds_nobody_up(self):
        fifos = self.work / "fifos"
        up = "../" * (len(self.cluster.icp_run_dir.parts) - 1)
        job = self.submit(f"mkdir -p {fifos}; mkfifo {fifos}/job_$SLURM_JOB_ID.run {fifos}/job_$SLURM_JOB_ID.steps; "
                          f"LD_PRELOAD={self.own_srun()} SLURM_STEP_NODELIST={up}{str(fifos)[1:]} srun --checkpoint-interval=1h echo ran")
        self.assertEqual(self.wait_job(job), "COMPLETED")
        self.assertIn("ran", self.output(job))
        self.wait_clean()

    def test_a_job_without_its_namespace_does_not_run(self):
        self.assertEqual(self.srun("true").returncode, 0)
        self.wait_clean()
        node = self.cluster.icp_run_dir / self.cluster.node_names[0]
        node.chmod(0o777)  # others may write to it: not taken
        try:
            result = self.srun("echo", "ran")
            self.assertNotEqual(result.returncode, 0)
            self.assertNotIn("ran", result.stdout)
            self.assertIn("slurm-icp: the job cannot run: it gets no IPC namespace of its own: ", result.stderr)
            self.assertIn("icp.yaml", result.stderr)
        finally:
            node.chmod(0o700)
        self.assertNotIn("drain", " ".join(self.cluster.node_states().values()).lower())
        self.assertEqual(self.srun("echo", "ran").stdout, "ran\n")
        self.wait_clean()

    # All that the plugin reads of a step's environment (spank/options.cc, step.cc, het_group.cc, pmix_relay.cc).
    VARIABLES = ("SLURM_CHECKPOINT SLURM_CHECKPOINT_INTERVAL SLURM_CHECKPOINT_DIR SLURM_CHECKPOINT_IMAGE_DIR SLURM_CHECKPOINT_ON "
                 "SLURM_CHECKPOINT_REQUEUE_MAX SLURM_RESTART_DIR SRUN_DEBUG SLURM_RESTART_COUNT PMI_FD PMIX_SERVER_URI41 PMIX_SERVER_URI "
                 "PMIX_NAMESPACE PMIX_MCA_gds ICP_LAUNCHED ICP_LAUNCH_SOCKET ICP_LAUNCH_PATH SLURM_HET_SIZE SLURM_JOB_ID_HET_GROUP_0 SLURM_CHECKPOINT_DIR_HET_GROUP_0").split()

    def step_with(self, names, value):
        """A step whose environment srun has not looked at (--export adds to it last): it runs, or is refused by a sentence."""
        result = self.srun("--checkpoint-interval=1h", "--export=ALL," + ",".join(f"{name}={value}" for name in names), "echo", "ran")
        if result.returncode != 0:
            self.assertIn("slurm-icp: ", result.stderr)
            self.assertNotIn("\x1b[2J", result.stderr)
        else:
            self.assertEqual(result.stdout, "ran\n")

    def test_variables(self):
        fifo = self.work / "fifo"
        os.mkfifo(fifo, 0o666)
        made = pathlib.Path("/etc/icp-test-made-by-root")
        self.addCleanup(lambda: made.exists() and made.rmdir())
        short = ["../" * 12 + "etc/" + made.name, str(fifo), "\x1b[2J\x07\r\nforged", "-1", "99999999999999999999", "tcp4://127.0.0.1:1",
                 ";tcp4://[", "/proc/self/fd/0", "%n%s"]
        for value in short:
            with self.subTest(value=value[:30]):
                self.step_with(self.VARIABLES, value)
                self.assertFalse(made.exists())
        for name in ("SLURM_CHECKPOINT_DIR", "SLURM_CHECKPOINT", "PMI_FD", "PMIX_SERVER_URI41", "SLURM_HET_SIZE", "SLURM_RESTART_DIR"):
            for size in (65535, 70000):
                with self.subTest(name=name, size=size):
                    self.step_with([name], "x" * size)
        self.wait_clean()
        self.assertEqual([p.name for p in self.cluster.icp_run_dir.iterdir()], self.cluster.node_names)
        self.assertNotIn("drain", " ".join(self.cluster.node_states().values()).lower())
        for log in (self.agent_log(), self.cluster.slurmd_log().read_text(errors="replace")):
            self.assertNotIn("\x1b[2J", log)
            self.assertNotIn("\nforged", log)

    def test_an_agent_that_its_user_has_stopped_holds_nobody_up(self):
        # slurmstepd tells it of each task's begin and end: more than fits into a socket by default.
        # This cluster's: the user has others in tests beside.
        own = f"^{self.cluster.bin_dir}/icpstepd "
        script = f"#!/bin/bash\nwhile ! pkill -STOP -u $(id -u) -f '{own}'; do sleep 0.05; done\nsleep 3\n"
        stopper = self.work / "stopper.sh"
        stopper.write_text(script)
        stopper.chmod(0o755)
        begin = time.monotonic()
        job = self.submit(f"{stopper} & srun --overcommit -n 160 --checkpoint-interval=1h sh -c 'sleep 2'; echo over", "-t2")
        self.assertEqual(self.wait_job(job, timeout=120), "COMPLETED")
        self.assertLess(time.monotonic() - begin, 90)
        self.assertIn("over", self.output(job))
        self.wait_clean()
        self.assertNotIn("drain", " ".join(self.cluster.node_states().values()).lower())
        # Nor does it stay when all is over, with root's process that works for it.
        self.wait_for(lambda: not self.agents(), 120, "the stopped agent to be ended")

    def test_names_of_processes_do_not_keep_the_epilog(self):
        # A process of the job that is called like a slurmstepd is killed with the job; one of another user says nothing.
        other = subprocess.Popen(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c",
                                  "exec -a 'slurmstepd: [%d.0]' sleep 60" % 4711])
        self.addCleanup(lambda: (other.kill(), other.wait()))
        result = self.sh([self.cluster.bin_dir / "icpstepd", "epilog", "--config", self.cluster.conf_dir / "icp.yaml", "--job", "4711",
                          "--uid", "1", "--node", self.cluster.node_names[0]], check=False, user="root")
        self.assertNotIn("late epilog", result.stderr + self.agent_log())


if __name__ == "__main__":
    harness.main()
