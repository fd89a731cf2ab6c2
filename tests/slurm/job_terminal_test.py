# SPDX-License-Identifier: GPL-2.0-or-later
"""Terminals: srun --pty over a death, and Open MPI's mpirun in a batch script, which makes one for each rank."""

import contextlib
import fcntl
import os
import pathlib
import re
import select
import struct
import termios

import harness
from jobcase import JobCase
from mpicase import OpenMpiProgram, with_open_mpi


def runs_sleep(process):
    with contextlib.suppress(OSError):
        return (process / "cmdline").read_bytes() == b"sleep\x00200\x00"
    return False


class Screen:
    """A terminal that a test types on and reads."""

    def __init__(self, rows, columns):
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.text = ""

    def read(self):
        with contextlib.suppress(OSError):
            while select.select([self.master], [], [], 0.05)[0]:
                self.text += os.read(self.master, 65536).decode(errors="replace")
        return self.text

    def type(self, text):
        self.text = ""
        os.write(self.master, text.encode())

    def close(self):
        os.close(self.master)
        os.close(self.slave)


class Shell(JobCase):
    def pty_step(self, screen, *words):
        """srun --pty on the screen; returns (its Popen, job id)."""
        before = set(self._queue())
        child = self.cluster.popen(["srun", "--pty", *words], user=self.user, stdin=screen.slave, stdout=screen.slave,
                                   stderr=screen.slave, env={"PS1": "ready> ", "TERM": "dumb"})
        new = self.wait_for(lambda: [line for line in self._queue() if line not in before and " R" in line], 30, "the job to start")
        return child, int(new[0].split()[0])

    def shown(self, screen, pattern, timeout=30):
        return self.wait_for(lambda: re.search(pattern, screen.read()), timeout,
                             f"{pattern!r} on the screen, which shows {screen.text!r}; log:\n{self.agent_log()[-1500:]}")

    def test_shell_goes_on_with_its_jobs(self):
        screen = Screen(24, 80)
        self.addCleanup(screen.close)
        srun, job = self.pty_step(screen, "--checkpoint-interval=1s", "bash", "--norc", "-i")
        screen.type("own=mine; sleep 300 &\n")
        self.shown(screen, r"\[1\] \d+")
        screen.type("cat\n")
        before = len(self.versions(f"{job}.0")) if (self.work / f"{job}.0").exists() else 0
        self.wait_versions(f"{job}.0", before + 2)
        self.kill_step_tasks(job)
        self.assertNotEqual(srun.wait(30), 0)

        other = Screen(33, 99)
        self.addCleanup(other.close)
        srun, job = self.pty_step(other, f"--restart-dir={job}.0", "none")
        self.shown(other, "restarted from version")
        other.type("to the cat\n")
        self.shown(other, r"to the cat\r\nto the cat\r\n")
        other.type("\x03")
        self.shown(other, r"ready> ")
        other.type("jobs; echo it-is-$own; stty size\n")
        text = self.shown(other, r"Running +sleep 300 &\r\n(?s:.*)it-is-mine\r\n(\d+ \d+)\r\n")
        self.assertEqual(text[1], "33 99")
        other.type("sleep 200\n")
        # Before it runs, the key would be one for the shell's own line editing.
        self.wait_for(lambda: any(runs_sleep(entry) for entry in pathlib.Path("/proc").glob("[0-9]*")), 30, "sleep 200")
        other.type("\x1a")
        self.shown(other, r"Stopped +sleep 200")
        other.type("kill %1 %2; exit 7\n")
        self.shown(other, "exit|There are")
        other.type("exit 7\n")
        self.wait_for(lambda: other.read() is not None and srun.poll() is not None, 30, f"the end; {other.text!r}")
        self.assertEqual(srun.returncode, 7, other.text)


@with_open_mpi
class OpenMpi(OpenMpiProgram, JobCase):
    def script(self, step_ms):
        return self.exports + f"mpirun.openmpi --oversubscribe -n 2 ./allreduce --rounds 60 --step-ms {step_ms}; echo end $?"

    def test_mpirun_in_a_batch_script_after_a_requeue(self):
        whole = self.submit(self.script(0), "-n2")
        self.assertEqual(self.wait_job(whole, timeout=90), "COMPLETED", self.output(whole))
        wanted = self.output(whole).splitlines()[-2:]
        self.assertRegex(wanted[0], r"^RESULT allreduce ranks=2 rounds=60 hash=[0-9a-f]{16}$")
        job = self.submit(self.script(200), "-n2", "--checkpoint-interval=1s")
        self.wait_text(f"job-{job}.out", "ROUND 10", 60)
        self.wait_versions(f"{job}.batch", 3, 60)
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=120), "COMPLETED", self.output(job) + self.agent_log()[-2000:])
        text = self.output(job)
        self.assertIn(f"slurm-icp: step {job}.batch restarted from version", text)
        self.assertEqual(text.splitlines()[-2:], wanted)
        self.assertEqual(text.count("ROUND 0\n"), 1)


if __name__ == "__main__":
    harness.main()
