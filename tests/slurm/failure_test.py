"""What dies, is cut off or full while versions are taken on two nodes: the job goes on, the last whole version stays."""

import os
import random
import signal
import subprocess
import time

import harness
import leftovers
from coordinated import Coordinated


class Failures(Coordinated):
    config = "jitter: 0\nstop_timeout: 2s\n"

    def agents(self):
        return [pid for pid in leftovers.processes(self.cluster.node_names)
                if leftovers.read(f"/proc/{pid}/comm").strip() == b"icpstepd"]

    def goes_on_from_its_last(self, image, answer):
        """After a death: what is restored ends with the uninterrupted answer."""
        again = self.restart_ring(image)
        self.assertEqual(self.results(again.stdout), answer, again.stderr + self.agent_log()[-3000:])

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.answer = None

    def setUp(self):
        super().setUp()
        if type(self).answer is None:
            result = self.sh(["srun", "-N2", "-n2", *self.ring("answer")], timeout=60)
            type(self).answer = self.results(result.stdout)
        self.assertEqual(len(self.answer), 2)

    def ends_well(self, srun, output="ring.out"):
        self.assertEqual(srun.wait(90), 0, self.text(output) + self.agent_log()[-2000:])
        self.assertEqual(self.results(self.text(output)), self.answer)

    def test_icpctld_killed_at_random_moments(self):
        chance = random.Random(1)
        srun, job, image = self.start_ring("killed-ctld")
        self.wait_whole(image, 1)
        for _ in range(4):
            time.sleep(chance.uniform(0.2, 1.2))
            self.cluster.kill_coordinator()
            listed = self.catalog(job)
            self.assertLessEqual(set(listed), set(self.whole_versions(image)))
            self.cluster.start_coordinator()
        before = len(self.whole_versions(image))
        self.wait_whole(image, before + 1)
        self.ends_well(srun)
        self.wait_for(lambda: self.catalog(job) == self.whole_versions(image), 10,
                      f"the catalog to know all: {self.catalog(job)}, on disk {self.whole_versions(image)}")

    def test_icpctld_hangs_while_the_processes_are_stopped(self):
        srun, job, image = self.start_ring("hung-ctld")
        self.wait_whole(image, 1)
        for _ in range(6):  # one of them meets a stop
            os.kill(self.cluster.pids["icpctld"][0], signal.SIGSTOP)
            time.sleep(0.3)
            os.kill(self.cluster.pids["icpctld"][0], signal.SIGCONT)
            time.sleep(0.25)
        self.ends_well(srun)
        self.goes_on_from_its_last(image, self.answer)

    def test_agent_killed(self):
        srun, job, image = self.start_ring("killed-agent")
        self.wait_whole(image, 1)
        agents = self.agents()
        self.assertEqual(len(agents), 2)
        time.sleep(random.Random(2).uniform(0.1, 1))
        os.kill(agents[0], signal.SIGKILL)
        self.ends_well(srun)
        self.goes_on_from_its_last(image, self.answer)

    def test_no_icpctld_at_all(self):
        self.cluster.kill_coordinator(signal.SIGTERM)
        try:
            begin = time.monotonic()
            result = self.srun("-N2", "-n2", "--checkpoint-interval=1s", "sleep", "3")
            self.assertEqual(result.returncode, 0)
            self.assertLess(time.monotonic() - begin, 6)
            self.assertEqual(result.stderr.count("the coordinator cannot be reached"), 2, result.stderr)  # one a node
        finally:
            self.cluster.start_coordinator()

    def test_two_icpctld(self):
        second = subprocess.run([self.cluster.bin_dir / "icpctld", "--config", self.cluster.conf_dir / "icp.yaml"],
                                env=self.cluster.env(), capture_output=True, text=True, timeout=20, check=False)
        self.assertEqual(second.returncode, 1)
        self.assertIn("another icpctld is running", second.stderr)

    def test_job_cancelled_in_the_middle(self):
        for i in range(3):
            srun, job, image = self.start_ring(f"cancelled{i}")
            self.wait_whole(image, 1)
            time.sleep(0.9 + 0.06 * i)
            self.sh(["scancel", job])
            self.assertNotEqual(srun.wait(30), 0)
            self.wait_clean()
        self.goes_on_from_its_last(image, self.answer)

    def test_slurmctld_down_meanwhile(self):
        srun, job, image = self.start_ring("no-slurmctld")
        self.wait_whole(image, 1)
        controller = self.cluster.pids["slurmctld"][0]
        os.kill(controller, signal.SIGSTOP)
        try:
            self.wait_whole(image, 3)
        finally:
            os.kill(controller, signal.SIGCONT)
        self.ends_well(srun)

    def test_directory_read_only_and_removed(self):
        srun, job, image = self.start_ring("read-only")
        self.wait_whole(image, 1)
        path = self.work / image
        os.chmod(path, 0o500)
        time.sleep(2.5)
        os.chmod(path, 0o700)
        count = len(self.whole_versions(image))
        self.wait_whole(image, count + 1)
        text = self.text("ring.out")
        self.assertIn(text.count("no checkpoint could be taken"), (1, 2), text)  # once a node, with the reason
        self.assertIn("Permission denied", text)
        self.ends_well(srun)

    def test_disk_full(self):
        small = self.work / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k,mode=0777", "none", small], check=True)
        try:
            srun, job = self.start_srun("-N2", "-n2", "--checkpoint-interval=1s", f"--checkpoint-dir={small}",
                                        *self.ring("full"), output="ring.out")
            self.wait_text("ring.out", "No space left on device", timeout=60)
            self.ends_well(srun)
            self.assertEqual(list(small.glob("*/.v*")), [])  # nothing half written stays
        finally:
            subprocess.run(["umount", small], check=True)


class NodeDies(Coordinated):
    options = {"nodes": 3, "coordinator": True}

    def test_job_goes_on_elsewhere_from_its_last_version(self):
        directory = self.ring("node-dies")[1]
        job = self.submit(f"echo run ${{SLURM_RESTART_COUNT:-0}}; srun -n2 tcp_ring {directory} 400 20",
                          "-N2", "-n2", "--checkpoint-interval=1s", "--open-mode=append")
        image = f"{job}.0"
        self.wait_for(lambda: len(list(self.work.glob(f"{image}/v*"))) >= 3, 40, "three versions")
        batch = self.job(job)["BatchHost"]
        other = next(i for i in (1, 2, 3) if self.cluster.node(i) != batch
                     and list(self.work.glob(f"{image}/v*/{self.cluster.node(i)}")))
        self.cluster.kill_node(other)
        self.cluster.run(["scontrol", "update", f"NodeName={self.cluster.node(other)}", "State=DOWN", "Reason=died"])
        self.assertEqual(self.wait_job(job, "COMPLETED", "FAILED", "NODE_FAIL", timeout=150), "COMPLETED")
        text = self.output(job)
        self.assertIn(f"slurm-icp: step {job}.0 restarted from version", text[text.index("run 1"):])
        self.assertEqual(len(self.results(text)), 2, text)
        self.cluster.start_node(other)


if __name__ == "__main__":
    harness.main()
