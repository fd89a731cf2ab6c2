#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""In the guest: a job under a real Slurm, saved with the kernel module as the tracker, killed, and brought back."""
import pathlib
import re
import signal
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "slurm"))
import harness  # noqa: E402  (the path comes first)
from jobcase import JobCase, leak  # noqa: E402

# Makes thirty segments, each by a child that is gone at once.
SHORT_LIVED = r"""
use IPC::SysV qw(IPC_CREAT);
for my $i (1 .. 30) {
    my $pid = fork // die;
    if (!$pid) { defined shmget(0x3300 + $i, 65536, 0600 | IPC_CREAT) or die; exit }
    waitpid $pid, 0;
    die if $?;
}
print "made\n";
"""
MGS = ["mgs", "--rows", "200", "--columns", "100", "--key", "77", "--seed", "7"]


class Job(JobCase):
    options = {"slurmd_timeout": 300}

    def killed_job(self, count):
        """A job that was killed when it had some versions: its image. One that ends before, on a machine that has other
        things to do, is begun again with longer pauses."""
        for pause in ("200", "1000", "5000"):
            srun, job = self.start_srun("-n2", "--checkpoint-interval=1s", *MGS, "--step-ms", pause)
            image = f"{job}.0"
            self.wait_for(lambda: len(self.versions(image)) >= count or srun.poll() is not None, 60,
                          f"versions in {image}")
            if srun.poll() is None and self.kill_step_tasks(job) >= 2:
                self.assertEqual(srun.wait(600), 128 + signal.SIGKILL)
                return image
        self.fail(f"the job had never {count} versions; log:\n{self.agent_log()[-1500:]}")

    def test_killed_and_restarted(self):
        answer = self.sh(["srun", "-n2", *MGS]).stdout.splitlines()[-1]
        image = self.killed_job(3)
        versions = self.sh(["icp", "list", image]).stdout
        print(versions)
        lines = versions.splitlines()[1:]
        self.assertGreaterEqual(len(lines), 3)
        for number, line in enumerate(lines):
            self.assertIn("kernel-module", line)
            self.assertIn("full" if number == 0 else "incremental", line)
        result = self.sh(["srun", "-n2", f"--restart-dir={image}", "none"])
        self.assertEqual(result.stdout.splitlines()[-1], answer)

    def test_segments_whose_makers_are_gone(self):
        """ipc: host. Only the module has seen these processes, or nearly all of them."""
        self.cluster.set_icp_config(self.icp_lines("ipc: host\n"))
        self.sh(leak(4096, 0x3300))  # the same user, outside of any job
        neighbour = self.user_segments()
        self.assertEqual(len(neighbour), 1)
        try:
            self.assertEqual(self.sh(["srun", "-n1", "perl", "-e", SHORT_LIVED]).stdout, "made\n")
            self.wait_for(lambda: not self.ledger_files(), 120, "the epilog")
            self.assertEqual(self.user_segments(), neighbour)

            def removed():  # said after the ledger is gone
                return sorted(re.findall(r"removed shm key 0x000033(..) ", self.agent_log()))
            wanted = [f"{i:02x}" for i in range(1, 31)]
            self.wait_for(lambda: removed() == wanted, 30, f"lines about them; log:\n{self.agent_log()[-3000:]}")
        finally:
            for number in self.user_segments():
                self.sh(["ipcrm", "-m", number], check=False)


if __name__ == "__main__":
    harness.main()
