# SPDX-License-Identifier: GPL-2.0-or-later
"""PMI-1 under srun --mpi=pmi2: after a restart the key-value space, names and those who wait in a barrier are there."""

import shutil

import harness
from coordinated import Coordinated
from jobcase import JobCase

LINE = "KEYS card-0; card-1; late-1"


class Talk(JobCase):
    """One node, two tasks; twice from the same job's versions, the second time from versions of the first restart."""

    nodes = 1

    def setUp(self):
        super().setUp()
        shutil.copy(harness.ROOT / "tests" / "programs" / "pmi_talk.py", self.work)
        (self.work / "go").unlink(missing_ok=True)

    def wait_more(self, image):
        self.wait_versions(image, 2 + len(self.versions(image)), 60)

    def kill(self, job):
        for node in range(1, self.nodes + 1):
            self.kill_step_tasks(job, node=node)

    def test_key_value_space_and_barrier(self):
        srun = ["--mpi=pmi2", f"-N{self.nodes}", "-n2"]
        first, job = self.start_srun(*srun, "--checkpoint-interval=0.5s", "./pmi_talk.py")
        self.wait_text("srun.out", "READY", 60)
        self.wait_more(f"{job}.0")
        self.kill(job)
        self.assertNotEqual(first.wait(30), 0)
        second, again = self.start_srun(*srun, "--checkpoint-interval=0.5s", f"--restart-dir={job}.0", "none",
                                        output="second.out")
        self.wait_text("second.out", "restarted from version", 60)
        self.wait_more(f"{again}.0")
        self.kill(again)
        self.assertNotEqual(second.wait(30), 0)
        third, _ = self.start_srun(*srun, f"--restart-dir={again}.0", "none", output="third.out")
        self.wait_text("third.out", "restarted from version", 60)
        self.sh(["touch", "go"])
        self.assertEqual(third.wait(60), 0, self.text("third.out") + self.agent_log()[-3000:])
        self.assertIn(LINE, self.text("third.out"))
        self.assertRegex(self.text("third.out"), "NAME .*info=ok.* port=behind")


class TalkOnTwoNodes(Coordinated, Talk):
    nodes = 2

    def wait_more(self, image):
        self.wait_whole(image, 2 + len(self.whole_versions(image)), 60)


if __name__ == "__main__":
    harness.main()
