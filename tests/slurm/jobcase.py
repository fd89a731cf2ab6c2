# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the job's behaviour share: the plugin is loaded, and verbs for versions and IPC objects."""

import os
import re
import signal
import subprocess
import time

import harness
import leftovers

# Counts to 60 with nothing but itself; ends with status 5.
PERL = ["perl", "-e", "$| = 1; $SIG{USR1} = sub { print qq(usr1\\n) };"
        "for my $i (1 .. 60) { print qq($i\\n); select undef, undef, undef, 0.1 } exit 5"]


class JobCase(harness.ClusterCase):
    with_plugin = True
    config = ""  # lines of icp.yaml

    @classmethod
    def configure(cls):
        cls.cluster.icp_config = cls.icp_lines(cls.config)

    @classmethod
    def icp_lines(cls, config):
        return f"log: {cls.cluster.log_dir}/icpstepd.log\nmin_interval: 0.1s\nlog_level: debug\n{config}"

    def agent_log(self):
        path = self.cluster.log_dir / "icpstepd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_agent_log(self, pattern, timeout=30):
        """Wait until the agents' log matches: the epilog runs after srun has ended."""
        return self.wait_for(lambda: re.search(pattern, self.agent_log()), timeout,
                             f"{pattern!r} in the agents' log, which has {self.agent_log()[-1500:]!r}")

    def ledger_files(self):
        """What the plugin keeps of jobs (its lock files excepted)."""
        run = self.cluster.icp_run_dir
        return sorted(str(p.relative_to(run)) for p in run.glob("*/job_*")) if run.exists() else []

    def wait_clean(self):
        """Wait until every epilog is through."""
        self.wait_for(lambda: not self.ledger_files(), 30, f"ledgers to go: {self.ledger_files()}")

    def versions(self, image):
        """Numbers of the committed versions of an image (a path below self.work)."""
        return sorted(int(p.name[1:]) for p in (self.work / image).glob("v[0-9]*"))

    def wait_versions(self, image, count, timeout=40):
        self.wait_for(lambda: len(self.versions(image)) >= count, timeout,
                      f"{count} versions in {image}; log:\n{self.agent_log()[-1500:]}")

    def user_segments(self):
        """Ids of the shared segments of the jobs' user in the machine's own IPC namespace."""
        return {item[1] for item in self.cluster.ipc_objects() if item[0] == "shm"}

    def stepd(self, job, step):
        """Pid of the slurmstepd of a step."""
        title = f"slurmstepd: [{job}.{step}]".encode()
        for pid in leftovers.processes(self.cluster.node_names):
            if leftovers.read(f"/proc/{pid}/cmdline").startswith(title):
                return pid
        return None

    def agents(self):
        """Pids of this cluster's agents."""
        mine = str(self.cluster.bin_dir).encode()
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and leftovers.read(f"/proc/{pid}/comm").strip() == b"icpstepd"
                and leftovers.read(f"/proc/{pid}/cmdline").startswith(mine)]

    def srun(self, *words, timeout=60):
        """srun as the ordinary user, whatever its end. Returns a CompletedProcess."""
        return self.sh(["srun", *words], check=False, timeout=timeout)

    def start_srun(self, *words, output="srun.out", env=None):
        """Start srun in the background. Returns (its Popen, job id)."""
        (self.work / output).unlink(missing_ok=True)
        before = {line.split()[0] for line in self._queue()}
        child = self.start(["srun", *words], output, env=env)

        def appeared():
            if child.poll() is not None:
                raise AssertionError(f"srun ended early: {self.text(output)}")
            new = [line for line in self._queue() if line.split()[0] not in before]
            return int(new[0].split()[0]) if new and " R" in new[0] else None
        return child, self.wait_for(appeared, 30, "the job to start")

    def killed_run(self, words, tasks, versions=2, output="first.out"):
        """Run words under srun, kill all its processes after some versions. Returns the image's name."""
        srun, job = self.start_srun(f"-n{tasks}", "--checkpoint-interval=1s", *words, output=output)
        image = f"{job}.0"
        self.wait_versions(image, versions)
        self.assertGreaterEqual(self.kill_step_tasks(job), 1)
        self.assertEqual(srun.wait(30), 128 + signal.SIGKILL)
        return image

    def _queue(self):
        return self.cluster.run(["squeue", "-h", "-o", "%A %t"], timeout=20).stdout.splitlines()


def leak(size, key, seconds=0):
    """A program that leaves a System V segment behind (perl: it is everywhere)."""
    return ["perl", "-e", f"use IPC::SysV qw(IPC_CREAT); defined shmget({key}, {size}, 0600|IPC_CREAT) or die;"
            f"$| = 1; print qq(made\\n); sleep {seconds} if {seconds}"]


def numbers(text):
    return [int(word) for word in re.findall(r"\d+", text)]


def cost(command, rounds=5):
    """Median seconds of a command."""
    times = []
    for _ in range(rounds):
        begin = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        times.append(time.monotonic() - begin)
    return sorted(times)[rounds // 2]
