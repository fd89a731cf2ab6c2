# SPDX-License-Identifier: GPL-2.0-or-later
"""A ring of tasks that dies and is restored on other nodes, again and again; for tests."""

import pathlib
import re

from coordinated import Coordinated


class LayoutCase(Coordinated):
    options = {"nodes": 3, "coordinator": True}

    def capsules(self, image):
        """{version: names of the capsules that have committed it}"""
        found = {}
        for path in self.cluster.work.glob(f"{image}/v*/*/manifest.icp"):
            found.setdefault(int(path.parts[-3][1:]), set()).add(path.parts[-2])
        return found

    def wait_capsules(self, image, names, count=2):
        """Wait for so many versions with all these capsules."""
        self.wait_for(lambda: len([v for v in self.capsules(image).values() if v == names]) >= count, 40,
                      f"versions of {names} in {image}: {self.capsules(image)}; icpctld: {self.ctld_log()[-2000:]} "
                      f"agents: {self.agent_log()[-3000:]}")

    def killed_ring(self, words, tasks, names, output="first.out", env=None):
        """Start it, kill it after some versions. Returns the image's name."""
        srun, job = self.start_srun("--checkpoint-interval=1s", *words, output=output, env=env)
        image = f"{job}.0"
        self.wait_capsules(image, names)
        self.assertEqual(self.kill_ring(), tasks)
        self.assertNotEqual(srun.wait(30), 0)
        return image

    def through(self, image, tasks, names, layouts):
        """Restore an image in each layout (options of srun) in turn, killing it after two versions; the last one ends by
        itself. Returns its output."""
        for words in layouts[:-1]:
            image = self.killed_ring([*words, f"--restart-dir={image}", "none"], tasks, names, "again.out")
            self.assertIn("restarted from version", self.text("again.out"))
            # Every capsule's first version in the new image is a full one; the next ones are not.
            pattern = rf" {re.escape(image)}: version 2: "
            self.wait_for(lambda pattern=pattern: len(re.findall(pattern, self.agent_log())) == len(names), 10,
                          f"{len(names)} times {pattern} in {self.agent_log()[-3000:]}")
        last = self.srun(*layouts[-1], f"--restart-dir={image}", "none", timeout=120)
        self.assertEqual(last.returncode, 0, last.stderr + self.agent_log()[-3000:] + self.ctld_log()[-2000:])
        return last.stdout

    def one_complaint(self, result, pattern):
        """A restart that was refused with one sentence, before anything ran."""
        self.assertNotEqual(result.returncode, 0)
        self.assertEqual(result.stdout, "")
        lines = [line for line in result.stderr.splitlines() if "slurm-icp:" in line]
        self.assertEqual(len(lines), 1, result.stderr + self.agent_log()[-3000:])
        self.assertRegex(lines[0], pattern)

    def hostfile(self, *nodes):
        """Options of srun, and an environment, by which task i runs on the i-th node."""
        path = pathlib.Path(self.work) / "hostfile"
        path.write_text("".join(f"{self.cluster.node(i)}\n" for i in nodes))
        return ["-m", "arbitrary"], {"SLURM_HOSTFILE": str(path)}
