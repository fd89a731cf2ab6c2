"""icpctld with real daemons: versions of steps on several nodes, and what happens when something dies."""

import os
import re
import signal
import subprocess
import time

import harness
from jobcase import JobCase

COUNT = ["perl", "-e", "$| = 1; for my $i (1 .. 600) { print qq($i\\n); select undef, undef, undef, 0.1 }"]


class Coordinated(JobCase):
    options = {"nodes": 2, "coordinator": True}
    config = "jitter: 0\n"

    def ctld_log(self):
        return self.cluster.coordinator_log.read_text(errors="replace")

    def node_versions(self, image, node):
        """Numbers of the versions that a node has committed."""
        name = self.cluster.node(node)
        found = self.cluster.work.glob(f"{image}/v*/{name}/manifest.icp")
        return sorted(int(path.parts[-3][1:]) for path in found)


class TwoNodes(Coordinated):
    def test_versions_of_a_step_on_two_nodes(self):
        srun, job = self.start_srun("-N2", "-n2", "--checkpoint-interval=1s", *COUNT, output="two.out")
        image = f"{job}.0"
        self.wait_for(lambda: len(self.node_versions(image, 1)) >= 3, 30, f"three versions; icpctld: {self.ctld_log()[-2000:]}")
        self.assertEqual(self.node_versions(image, 1)[:3], self.node_versions(image, 2)[:3])
        self.sh(["scancel", job])
        srun.wait(30)

    def test_one_node_is_scheduled_too(self):
        srun, job = self.start_srun("-N1", "--checkpoint-interval=1s", *COUNT, output="one.out")
        self.wait_for(lambda: re.search(rf"step {job}.0: version 2\b", self.ctld_log()), 30, self.ctld_log)
        self.sh(["scancel", job])
        srun.wait(30)


if __name__ == "__main__":
    harness.main()
