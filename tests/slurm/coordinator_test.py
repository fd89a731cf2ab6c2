# SPDX-License-Identifier: GPL-2.0-or-later
"""icpctld with real daemons: versions of steps on several nodes, and their restart."""

import re

import harness
from coordinated import Coordinated

COUNT = ["perl", "-e", "$| = 1; for my $i (1 .. 600) { print qq($i\\n); select undef, undef, undef, 0.1 }"]


class TwoNodes(Coordinated):
    def test_messages_over_tcp_survive_death_and_restart(self):
        answer = self.results(self.sh(["srun", "-N2", "-n4", *self.ring("a")], timeout=60).stdout)
        self.assertEqual(len(answer), 4)
        srun, job = self.start_srun("-N2", "-n4", "--checkpoint-interval=1s", *self.ring("b"), output="ring.out")
        image = f"{job}.0"
        self.wait_for(lambda: len(self.whole_versions(image)) >= 3, 40,
                      f"three versions; icpctld: {self.ctld_log()[-2000:]}")
        self.assertEqual(self.kill_ring(), 4)
        self.assertNotEqual(srun.wait(30), 0)
        self.assertNotIn("RESULT", self.text("ring.out"))
        again = self.srun("-N2", "-n4", f"--restart-dir={image}", "none", timeout=90)
        self.assertEqual(self.results(again.stdout), answer, again.stderr + self.agent_log()[-3000:] + self.ctld_log()[-2000:])
        self.assertEqual(again.returncode, 0)

    def test_restarted_step_is_checkpointed_and_restarted_again(self):
        answer = self.results(self.sh(["srun", "-N2", "-n2", *self.ring("c", 500)], timeout=60).stdout)
        srun, job = self.start_srun("-N2", "-n2", "--checkpoint-interval=1s", *self.ring("d", 500), output="first.out")
        image = f"{job}.0"
        for output in ("second.out", "third.out"):
            self.wait_for(lambda image=image: len(self.whole_versions(image)) >= 2, 40,
                          f"versions in {image}; icpctld: {self.ctld_log()[-2000:]} {self.agent_log()[-2000:]}")
            self.assertEqual(self.kill_ring(), 2)
            srun.wait(30)
            srun, job = self.start_srun("-N2", "-n2", "--checkpoint-interval=1s", f"--restart-dir={image}", "none",
                                        output=output)
            image = f"{job}.0"
        self.assertEqual(srun.wait(90), 0, self.text("third.out") + self.agent_log()[-3000:])
        self.assertEqual(self.results(self.text("third.out")), answer)

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
