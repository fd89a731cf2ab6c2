# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps of several nodes restored on fewer: several capsules on one node."""

import os
import shlex
import signal
import time

import harness
import leftovers
from layouts import LayoutCase


class FewerNodes(LayoutCase):
    def answer(self, tasks, messages):
        words = [*self.ring(f"answer-{self._testMethodName}", messages)[:-1], "0"]
        return self.results(self.sh(["srun", "-N1", f"-n{tasks}", *words], timeout=60).stdout)

    def test_three_nodes_onto_two_onto_one_and_back(self):
        answer = self.answer(3, 700)
        self.assertEqual(len(answer), 3)
        names = set(self.cluster.node_names)
        image = self.killed_ring(["-N3", "-n3", *self.ring("three", 700)], 3, names)
        out = self.through(image, 3, names, [["-N2", "-n3"], ["-N1", "-n3"], ["-N3", "-n3"]])
        self.assertEqual(self.results(out), answer)

    def test_two_by_two_tasks_on_one_node(self):
        answer = self.answer(4, 300)
        names = set(self.cluster.node_names[:2])
        words = ["-N2", "-n4", "--ntasks-per-node=2", "-w", ",".join(sorted(names))]
        image = self.killed_ring([*words, *self.ring("two", 300)], 4, names)
        again = self.srun("-N1", "-n4", f"--restart-dir={image}", "none", timeout=90)
        self.assertEqual(self.results(again.stdout), answer, again.stderr)
        self.one_complaint(self.srun(*words, "-m", "cyclic", f"--restart-dir={image}", "none"),
                           r"holds tasks 0-1 on \S+n1, 2-3 on \S+n2; a node here has tasks (0,2|1,3): .* srun -N2 -n4 ")
        self.one_complaint(self.srun("-N1", "-n3", f"--restart-dir={image}", "none"),
                           "holds 4 tasks on 2 nodes, this step has 3; start it with srun -n4")
        begin = time.monotonic()
        self.one_complaint(self.srun("-N1", "-n2", f"--restart-dir={image}", "none"),
                           "holds 4 tasks on 2 nodes, this step has 2; start it with srun -n4")
        self.assertLess(time.monotonic() - begin, 30)

    def test_a_damaged_version_of_one_node_is_passed_over_by_all(self):
        answer = self.answer(2, 400)
        names = set(self.cluster.node_names[:2])
        image = self.killed_ring(["-N2", "-n2", "-w", ",".join(sorted(names)), *self.ring("damaged", 400)], 2, names)
        whole = [v for v, there in self.capsules(image).items() if there == names]
        last, name = max(whole), sorted(names)[1]
        stored = max((self.work / image / f"v{last:06d}" / name).glob("*.bin"), key=lambda path: path.stat().st_size)
        with open(stored, "r+b") as file:
            file.write(os.urandom(stored.stat().st_size))
        again = self.srun("-N2", "-n2", "-w", ",".join(sorted(names)), f"--restart-dir={image}", "none", timeout=90)
        self.assertEqual(self.results(again.stdout), answer, again.stderr)
        self.assertRegex(again.stderr, rf"version {last} of \S+ cannot be restarted: ")
        self.assertIn(f"restarted from version {last - 1} of", again.stderr)

    def test_vacated_elsewhere_and_restarted_on_the_same_nodes(self):
        answer = self.answer(2, 400)
        one, two, three = self.cluster.node_names
        self.cluster.run(["scontrol", "update", f"NodeName={one}", "State=DRAIN", "Reason=test"])
        job = self.submit(f"srun {shlex.join(self.ring('stick', 400))}", "-N2", "-n2", "--checkpoint-interval=1h")
        self.wait_text(f"job-{job}.out", r"at 50\n")
        elsewhere = self.work / "elsewhere"
        self.sh(["icp", "create", job, "--wait", "--image-dir", elsewhere])
        self.sh(["icp", "vacate", job, "--wait", "--image-dir", elsewhere])
        self.wait_job(job)
        self.cluster.run(["scontrol", "update", f"NodeName={one}", "State=RESUME"])
        self.assertEqual(self.capsules(f"elsewhere/{job}.0"), {1: {two, three}, 2: {two, three}})
        self.assertEqual(self.capsules(f"{job}.0"), {})
        self.wait_for(lambda: self.sh(["icp", "restart", job, "--stick-to-nodes"], check=False).returncode == 0, 30,
                      "the job to have ended altogether")
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        self.assertEqual(self.job(job)["BatchHost"], two)
        self.assertIn(f"restarted from version 2 of {elsewhere}/{job}.0, ", self.output(job))
        self.assertEqual(self.results(self.output(job)), answer)

    def test_nothing_outlives_the_agent_of_two_capsules(self):
        one, two, _ = self.cluster.node_names
        image = self.killed_ring(["-N2", "-n2", "-w", f"{one},{two}", *self.ring("orphans", 3000)], 2, {one, two})
        srun, job = self.start_srun("-N1", "-n2", f"--restart-dir={image}", "none", output="again.out")
        self.wait_text("again.out", "restarted from version.*(.|\n)*restarted from version")
        for pid in self.agents_of_steps():
            os.kill(pid, signal.SIGKILL)
        self.assertNotEqual(srun.wait(30), 0)
        self.wait_for(lambda: self.kill_ring() == 0, 10, "the restored processes to end")
        self.assertIn("icpstepd has ended", self.text("again.out"))
        self.cluster.run(["scancel", str(job)], check=False)

    def agents_of_steps(self):
        """Agents that slurmstepd started: not those that they started."""
        return [pid for pid in leftovers.processes(self.cluster.node_names)
                if leftovers.read(f"/proc/{pid}/comm").strip() == b"icpstepd"
                and b"--part-of" not in leftovers.read(f"/proc/{pid}/cmdline")]


if __name__ == "__main__":
    harness.main()
