# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs on two nodes under icpctld, for tests."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import sqlite3

import leftovers
from jobcase import JobCase


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

    def ring(self, where, messages=400, pause_ms=20):
        directory = self.work / where
        directory.mkdir()
        shutil.chown(directory, self.user)
        return ["tcp_ring", str(directory), str(messages), str(pause_ms)]

    def results(self, text):
        return sorted(re.findall(r"RESULT \d+ \w+", text))

    def answer(self, messages=3000, tasks=2):
        """What a ring on both nodes prints that nothing has happened to."""
        known = type(self).__dict__.get("answers") or {}
        if (messages, tasks) not in known:
            result = self.sh(["srun", "-N2", f"-n{tasks}", *self.ring(f"answer-{messages}-{tasks}", messages, 0)])
            known[messages, tasks] = self.results(result.stdout)
            self.assertEqual(len(known[messages, tasks]), tasks)
            type(self).answers = known
        return known[messages, tasks]

    def ring_pids(self):
        return [pid for pid in leftovers.processes(self.cluster.node_names)
                if leftovers.read(f"/proc/{pid}/comm").strip() == b"tcp_ring"]

    def hurry(self):
        """Let all rings come to their end."""
        for pid in self.ring_pids():
            try:
                os.kill(pid, signal.SIGUSR1)
            except ProcessLookupError:
                pass

    def whole_versions(self, image):
        return sorted(set(self.node_versions(image, 1)) & set(self.node_versions(image, 2)))

    def kill_ring(self):
        pids = self.ring_pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # the end of one may end others
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def start_ring(self, where, messages=3000, output="ring.out", tasks=2):
        """A ring on both nodes, with a version a second. Returns (srun, job, image)."""
        srun, job = self.start_srun("-N2", f"-n{tasks}", "--checkpoint-interval=1s", *self.ring(where, messages),
                                    output=output)
        return srun, job, f"{job}.0"

    def wait_whole(self, image, count, timeout=40):
        self.wait_for(lambda: len(self.whole_versions(image)) >= count, timeout,
                      f"{count} versions; icpctld: {self.ctld_log()[-2000:]} agents: {self.agent_log()[-2000:]}")

    def restart_ring(self, image, tasks=2, timeout=120):
        return self.srun("-N2", f"-n{tasks}", f"--restart-dir={image}", "none", timeout=timeout)

    def catalog(self, job):
        """Numbers of the versions of step 0 that icpctld's catalog has."""
        # Directories of steps come and go meanwhile, which walk() does not mind.
        path = next(pathlib.Path(directory) / "catalog.sqlite" for directory, _, files in os.walk(self.cluster.state)
                    if "catalog.sqlite" in files)
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20) as db:
            rows = db.execute("SELECT version FROM versions WHERE job = ? AND step = 0 ORDER BY version", (job,))
            return [row[0] for row in rows]
