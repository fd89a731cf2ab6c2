# SPDX-License-Identifier: GPL-2.0-or-later
"""System V objects: a job's own, gone at its end however it ends, and never another's."""

import os
import signal

import harness
import leftovers
from jobcase import JobCase, leak


class Private(JobCase):
    def test_steps_of_a_job_share_and_jobs_do_not(self):
        job = self.submit("readlink /proc/self/ns/ipc; srun -n2 readlink /proc/self/ns/ipc; "
                          "srun readlink /proc/self/ns/ipc", "-n2")
        self.assertEqual(self.wait_job(job), "COMPLETED")
        # A line is one namespace; srun may say that it waited for the step before.
        seen = [line for line in self.output(job).splitlines() if not line.startswith("srun: ")]
        own = set(seen)
        self.assertEqual(len(seen), 5, seen)
        self.assertEqual(len(own), 1)
        self.assertNotIn(os.readlink("/proc/self/ns/ipc"), own)
        job2 = self.submit("readlink /proc/self/ns/ipc")
        self.wait_job(job2)
        self.wait_clean()

    def gone(self, job, key):
        self.wait_clean()
        self.wait_agent_log(rf"job {job}: removed shm key 0x{key:08x} .*size 65536")
        self.assertEqual(self.user_segments(), set())

    def test_normal_end(self):
        job = self.submit("srun " + self.quoted(leak(65536, 0x1111)))
        self.wait_job(job)
        self.gone(job, 0x1111)

    @staticmethod
    def quoted(words):
        return " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)

    def running_leak(self, key):
        job = self.submit("srun " + self.quoted(leak(65536, key, 600)))
        self.wait_text(f"job-{job}.out", "made")
        return job

    def test_scancel(self):
        job = self.running_leak(0x1112)
        self.sh(["scancel", job])
        self.assertEqual(self.wait_job(job), "CANCELLED")
        self.gone(job, 0x1112)

    def test_slurmstepd_killed(self):
        job = self.running_leak(0x1113)
        tasks = self.step_pids(job)
        for step in (0, "batch"):
            os.kill(self.stepd(job, step), signal.SIGKILL)
        self.sh(["scancel", job], check=False)
        self.wait_job(job, timeout=90)
        self.gone(job, 0x1113)
        for pid in tasks:
            self.assertFalse(os.path.exists(f"/proc/{pid}/ns/ipc"), f"task {pid} was left alive")

    def test_slurmd_down_meanwhile(self):
        job = self.running_leak(0x1114)
        self.cluster.kill_slurmd(1)
        for pid in self.step_pids(job):
            os.kill(pid, signal.SIGKILL)
        self.sh(["scancel", job], check=False)
        self.cluster.start_node(1)
        self.wait_job(job, timeout=90)
        self.gone(job, 0x1114)


class LinuxProc(Private):
    options = {"proctrack": "linuxproc"}

    def test_slurmstepd_killed(self):
        self.skipTest("proctrack/linuxproc: without a cgroup nobody knows the tasks of a killed slurmstepd")


class Crowd(JobCase):
    """Jobs that end at the same moment."""
    options = {"cpus": 40}

    def job_groups(self):
        return [str(path) for path in leftovers.job_cgroups(self.cluster.node_names)]

    def test_no_cgroup_is_left(self):
        # Their slurmstepds leave one behind when several of a job end at once, as with a namespace of their own they do.
        jobs = [self.submit("srun sleep 600", "--mem=10") for _ in range(12)]
        self.wait_for(lambda: self.sh(["squeue", "-h", "-s", "-o", "%i"]).stdout.count(".0") == 12, 60, "12 steps")
        self.sh(["scancel", *[str(job) for job in jobs]])
        self.wait_for(lambda: not self._queue(), 60, "the jobs to end")
        self.wait_clean()
        self.wait_for(lambda: not self.job_groups(), 10, f"no cgroup to be left: {self.job_groups()}")


class Host(JobCase):
    config = "ipc: host\n"

    def test_a_neighbours_segment_survives_and_a_leaked_one_goes(self):
        key = 0x2221
        self.sh(leak(4096, key))  # the same user, outside of any job
        neighbour = self.user_segments()
        self.assertEqual(len(neighbour), 1)
        try:
            result = self.sh(["srun", "-n1", *leak(65536, key + 1, 2)])
            self.assertEqual(result.stdout, "made\n")
            self.wait_clean()
            self.wait_agent_log(rf"removed shm key 0x{key + 1:08x} .*size 65536")
            self.assertEqual(self.user_segments(), neighbour)
        finally:
            for number in neighbour:
                self.sh(["ipcrm", "-m", number], check=False)


if __name__ == "__main__":
    harness.main()
