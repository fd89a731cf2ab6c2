# SPDX-License-Identifier: GPL-2.0-or-later
"""What dies, hangs, is away or full while versions are taken on two nodes: the job goes on, the last whole version stays."""

import os
import re
import shutil
import signal
import subprocess
import time

import harness
import leftovers
from coordinated import Coordinated
from coordinator_relay import Relay

# Tasks that do what the first letter of a line of their file says, each once: fork, exec, exit. They print what they did.
CHANGING = ("$| = 1; my $file = qq($ARGV[0]/$ENV{SLURM_PROCID}); my $n = 0; while (1) { if (-e $file) { unlink $file; "
            "if ($ENV{SLURM_PROCID} % 3 == 0) { unless (fork) { select undef, undef, undef, 600; } print qq(forked\\n); } "
            "elsif ($ENV{SLURM_PROCID} % 3 == 1) { exec qw(perl -e), q($| = 1; print qq(execed\\n); my $n = 0; while (1) "
            "{ print $n++, qq(\\n); select undef, undef, undef, 0.1 }) } else { print qq(exits\\n); exit 0 } } "
            "print $n++, qq(\\n); select undef, undef, undef, 0.1 }")


class Relayed(Coordinated):
    """Between agents and icpctld is a relay that can hold any message."""

    options = {"nodes": 2, "coordinator": True, "cpus": 16}
    config = "jitter: 0\nstop_timeout: 2s\n"

    @classmethod
    def configure(cls):
        super().configure()
        cls.relay = Relay(lambda: cls.cluster.coordinator_port)
        cls.addClassCleanup(cls.relay.close)
        cls.cluster.coordinator_at = f"127.0.0.1:{cls.relay.port}"

    def agents(self):
        return [pid for pid in leftovers.processes(self.cluster.node_names)
                if leftovers.read(f"/proc/{pid}/comm").strip() == b"icpstepd"]

    def hold(self, moment, job, node=2):
        held = self.relay.hold(moment, job, self.cluster.node(node))
        self.addCleanup(held.release)
        return held

    def verify(self, image):
        for node in self.cluster.node_names:
            self.sh(["icp", "verify", image, "--node", node], timeout=60)

    def restore(self, image, output):
        """Start the restart of a ring; its srun."""
        srun, _ = self.start_srun("-N2", "-n2", f"--restart-dir={image}", "none", output=output)
        return srun

    def ends_well(self, srun, output, restored=False):
        """A ring ends with the uninterrupted answer."""
        if restored:  # before that there is nobody to be hurried
            self.wait_text(output, "restarted from version", timeout=60)
        self.hurry()
        self.assertEqual(srun.wait(90), 0, self.text(output) + self.agent_log()[-2000:])
        self.assertEqual(self.results(self.text(output)), self.answer(), self.agent_log()[-3000:])

    def goes_on_from_its_last(self, *images):
        """After a death: what is restored is the last whole version, and ends with the uninterrupted answer."""
        again = {image: self.restore(image, f"again-{image}.out") for image in images}
        for image, srun in again.items():
            self.ends_well(srun, f"again-{image}.out", restored=True)
            self.assertIn(f"restarted from version {self.whole_versions(image)[-1]} of", self.text(f"again-{image}.out"))


class Deaths(Relayed):
    def test_agent_killed_in_each_phase(self):
        moments = ["done PREPARE", "done STOP", "done COLLECT", "done WRITE", "go COMMIT", "done COMMIT"]
        runs = []
        for i, moment in enumerate(moments):
            runs.append((moment, 1 + i % 2, *self.start_ring(f"agent{i}", output=f"agent{i}.out"), f"agent{i}.out"))
        for moment, node, _, job, image, _ in runs:
            self.wait_whole(image, 1)
            with self.hold(moment, job, node) as held:
                held.wait()
                os.kill(held.agent(self.agents()), signal.SIGKILL)
        for moment, _, srun, _, _, output in runs:
            self.assertIsNone(srun.poll(), f"{moment}: {self.text(output)}")
        for moment, node, srun, job, image, output in runs:
            self.ends_well(srun, output)
            if moment == "go COMMIT":  # the other node has committed, this one has not
                self.assertEqual(self.node_versions(image, 3 - node)[:-1], self.node_versions(image, node))
        self.goes_on_from_its_last(*(run[4] for run in runs))

    def test_icpctld_killed_in_each_phase(self):
        srun, job, image = self.start_ring("ctld")
        alone, alone_job = self.start_srun("-N1", "-w", self.cluster.node(1), "--checkpoint-interval=1s", "sleep",
                                           "100", output="alone.out")
        self.wait_whole(image, 1)
        for moment in ("begin", "done PREPARE", "done STOP", "done COLLECT", "done WRITE", "done COMMIT"):
            before = len(self.whole_versions(image))
            with self.hold(moment, job) as held:
                held.wait()
                self.cluster.kill_coordinator()
            self.assertLessEqual(set(self.catalog(job)), set(self.whole_versions(image)), moment)
            self.cluster.start_coordinator()
            self.wait_whole(image, before + 1)
        # A step on one node commits alone: the word of that is lost, and told again.
        with self.hold("done COMMIT", alone_job, 1) as held:
            held.wait()
            self.cluster.kill_coordinator()
        self.cluster.start_coordinator()
        self.ends_well(srun, "ring.out")
        # Each time once, by one of the two nodes; the last time the ring may end before.
        self.assertIn(self.text("ring.out").count("the coordinator cannot be reached"), (6, 7), self.text("ring.out"))
        for what, name in ((job, image), (alone_job, f"{alone_job}.0")):
            on_disk = self.whole_versions(name) if what == job else self.node_versions(name, 1)
            self.wait_for(lambda what=what, on_disk=on_disk: set(on_disk) <= set(self.catalog(what)), 20,
                          f"the catalog to know all: {self.catalog(what)}, on disk {on_disk}")
        self.sh(["scancel", alone_job])
        alone.wait(30)

    def test_icpctld_hangs_and_the_job_ends(self):
        """Nobody waits for it for long: neither processes that are stopped, nor the job's end, nor the agents."""
        icpctld = self.cluster.pids["icpctld"][0]
        for moment in ("done PREPARE", "done COLLECT", "done WRITE"):
            with self.subTest(moment=moment):
                output = f"hung-{moment[5:]}.out"
                srun, job, image = self.start_ring(f"hung-{moment[5:]}", output=output)
                self.wait_whole(image, 1)
                with self.hold(moment, job) as held:
                    held.wait()
                    os.kill(icpctld, signal.SIGSTOP)
                try:
                    begin = time.monotonic()
                    self.ends_well(srun, output)
                    self.wait_for(lambda: not self.agents(), 20, "the agents to end")
                    self.assertLess(time.monotonic() - begin, 9)  # stopped ones: twice stop_timeout
                finally:
                    os.kill(icpctld, signal.SIGCONT)
        self.goes_on_from_its_last(image)

    def test_tasks_fork_exec_and_exit_in_the_middle(self):
        where = self.work / "changing"
        where.mkdir()
        shutil.chown(where, self.user)
        srun, job = self.start_srun("-N2", "-n6", "--checkpoint-interval=1s", "perl", "-e", CHANGING, str(where),
                                    output="changing.out")
        image = f"{job}.0"
        self.wait_whole(image, 1)
        did = ("forked", "execed", "exits")
        # Task by task: the first node's while the version waits to stop it, the second node's while it waits to commit.
        for task, moment in enumerate(["done PREPARE"] * 3 + ["done WRITE"] * 3):
            before = self.whole_versions(image)[-1]
            with self.hold(moment, job) as held:
                held.wait()
                (where / str(task)).touch()
                self.wait_for(lambda task=task: self.text("changing.out").count(did[task % 3]) == 1 + task // 3, 20,
                              f"task {task}: {self.text('changing.out')[-300:]}")
            self.wait_for(lambda before=before: self.whole_versions(image)[-1] > before, 20,
                          f"a version after {moment}: {self.agent_log()[-2000:]}")
        self.assertIsNone(srun.poll())
        self.assertNotIn("no checkpoint could be taken", self.text("changing.out"))
        self.sh(["scancel", job])
        srun.wait(30)
        self.verify(image)

    def test_job_cancelled_in_the_middle(self):
        for moment in ("done PREPARE", "done COLLECT", "done WRITE"):
            output = f"cancelled-{moment[5:]}.out"
            srun, job, image = self.start_ring(f"cancelled-{moment[5:]}", output=output)
            self.wait_whole(image, 1)
            with self.hold(moment, job) as held:
                held.wait()
                self.sh(["scancel", job])
                self.assertNotEqual(srun.wait(30), 0)
            self.wait_clean()
        self.goes_on_from_its_last(image)


class Surroundings(Relayed):
    def test_two_icpctld(self):
        second = subprocess.run([self.cluster.bin_dir / "icpctld", "--config", self.cluster.conf_dir / "icp.yaml"],
                                env=self.cluster.env(), capture_output=True, text=True, timeout=20, check=False)
        self.assertEqual(second.returncode, 1)
        self.assertIn("another icpctld is running", second.stderr)

    def test_slurmctld_down_meanwhile(self):
        srun, job, image = self.start_ring("no-slurmctld")
        self.wait_whole(image, 1)
        controller = self.cluster.pids["slurmctld"][0]
        os.kill(controller, signal.SIGSTOP)
        try:
            self.wait_whole(image, 3)
        finally:
            os.kill(controller, signal.SIGCONT)
        self.ends_well(srun, "ring.out")

    def test_directory_read_only(self):
        srun, job, image = self.start_ring("read-only")
        self.wait_whole(image, 1)
        path = self.work / image
        os.chmod(path, 0o500)
        self.wait_text("ring.out", "no checkpoint could be taken.*Permission denied")
        time.sleep(1.2)  # another round
        os.chmod(path, 0o700)
        count = len(self.whole_versions(image))
        self.wait_whole(image, count + 1)
        text = self.text("ring.out")
        self.assertIn(text.count("no checkpoint could be taken"), (1, 2), text)  # once a node, with the reason
        self.ends_well(srun, "ring.out")

    def test_directory_removed(self):
        """The next version makes it again, and is a full one: what is restored needs nothing that is gone."""
        srun, job, image = self.start_ring("removed")
        self.wait_whole(image, 2)
        for moment in (None, "done PREPARE", "done WRITE"):  # between versions, and in the middle of one
            before = self.whole_versions(image)[-1]
            if moment is None:
                shutil.rmtree(self.work / image)
            else:
                with self.hold(moment, job) as held:
                    held.wait()
                    shutil.rmtree(self.work / image)
            self.wait_for(lambda before=before: (self.whole_versions(image) or [0])[-1] > before, 20,
                          f"a version after {moment}: {self.agent_log()[-3000:]}")
        self.assertIsNone(srun.poll())
        self.kill_ring()
        srun.wait(30)
        self.verify(image)
        again = self.restore(image, "again.out")
        self.ends_well(again, "again.out", restored=True)

    def test_disk_full(self):
        small = self.work / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k,mode=0777", "none", small], check=True)
        try:
            srun, job = self.start_srun("-N2", "-n2", "--checkpoint-interval=1s", f"--checkpoint-dir={small}",
                                        *self.ring("full", 3000), output="ring.out")
            self.wait_text("ring.out", "No space left on device", timeout=60)
            self.ends_well(srun, "ring.out")
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
        self.assertTrue(re.search(rf"run 1\n(.*\n)*slurm-icp: step {job}\.0 restarted from version", text), text)
        self.assertEqual(len(self.results(text)), 2, text)
        self.cluster.start_node(other)


if __name__ == "__main__":
    harness.main()
