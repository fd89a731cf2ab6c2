# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose rights our processes have, at every moment of steps, versions and restarts: root's are the broker's alone."""

import os
import pathlib
import pwd
import threading
import time

import harness
import leftovers
from coordinated import Coordinated
from jobcase import PERL

OURS = {"icp", "icpstepd", "icp-proxy", "icp-init"}
CHECKPOINT_RESTORE = 1 << 40
MAY_HAVE_IT = {"icpstepd", "icp-init", "icp-ipc"}
BEGINNING = 3  # s; an agent is root until it has a broker, on a busy machine
GIVING_UP = 1  # s; what an agent takes at most to give its rights up, on a busy machine


class Watch(threading.Thread):
    """Looks at the processes that run programs of a directory, all the time."""

    def __init__(self, directory, user):
        super().__init__(daemon=True)
        self.programs = {str(directory / name) for name in OURS}
        self.user = pwd.getpwnam(user)
        self.seen, self.wrong = set(), []
        self.root_since = {}
        self.user_since = {}
        self.over = threading.Event()

    def run(self):
        while not self.over.is_set():
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    self.look(pid)
                except (OSError, KeyError, ValueError):
                    pass  # it has ended, or is about to
            time.sleep(0.02)

    def look(self, pid):
        if os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)") not in self.programs:
            return
        words = leftovers.read(f"/proc/{pid}/cmdline").decode(errors="replace").split("\0")
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
        status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        name = "icpstepd" if status["Name"] == "exe" else status["Name"]  # a part's, at its very beginning
        if name == "icpstepd" and "step" not in words:
            return  # the epilog's
        kind = f"{name} {words[1]}" if name == "icp-proxy" and len(words) > 1 and not words[1].isdigit() else name
        self.seen.add(kind)
        if name == "icp-broker":
            return
        uids, capabilities = status["Uid"].split(), int(status["CapPrm"], 16) | int(status["CapEff"], 16)
        if name == "icpstepd" and uids[1] == "0":
            since = self.root_since.setdefault(pid, time.monotonic())
            if time.monotonic() - since < BEGINNING:
                return
        if uids != [str(self.user.pw_uid)] * 4 or status["Gid"].split() != [str(self.user.pw_gid)] * 4:
            self.wrong.append(f"{kind} {pid}: uid {uids} gid {status['Gid']}")
        if capabilities & ~(CHECKPOINT_RESTORE if name in MAY_HAVE_IT else 0):
            self.wrong.append(f"{kind} {pid}: capabilities {capabilities:x}")
        if name == "icpstepd":
            since = self.user_since.setdefault(pid, time.monotonic())
            if time.monotonic() - since < GIVING_UP:
                return
            if (status["NoNewPrivs"], status["Seccomp"]) != ("1", "2"):
                self.wrong.append(f"{kind} {pid}: {text}")
            self.look_at_files(pid)

    def look_at_files(self, pid):
        """What it has open from when it was root: nothing that its user could not open."""
        for number in os.listdir(f"/proc/{pid}/fd"):
            path = os.readlink(f"/proc/{pid}/fd/{number}")
            if path.endswith(".log"):
                self.wrong.append(f"icpstepd {pid}: has {path}")


class Rights(Coordinated):
    def test_root_is_the_broker_alone(self):
        watch = Watch(self.cluster.bin_dir, self.cluster.user)
        watch.start()
        try:
            self.two_nodes_then_one()
            job = self.submit("sleep 2; srun -n1 true; echo end $?", "-n1", "--checkpoint-interval=1s")
            self.assertEqual(self.wait_job(job, timeout=60), "COMPLETED", self.output(job))
            if "pmix" in self.sh(["srun", "--mpi=list"], check=False).stderr:
                self.pmix()
                self.assertIn("icp-proxy pmix", watch.seen)
        finally:
            watch.over.set()
            watch.join()
        self.assertEqual(watch.wrong[:10], [])
        self.assertLessEqual({"icpstepd", "icp-broker", "icp-init", "icp-proxy", "icp-proxy launch"}, watch.seen)

    def two_nodes_then_one(self):
        srun, job = self.start_srun("-N2", "-n2", "--checkpoint-interval=1s", *PERL)
        image = f"{job}.0"
        self.wait_whole(image, 2)
        for node in (1, 2):
            self.kill_step_tasks(job, node=node)
        srun.wait(30)
        again, job = self.start_srun("-N1", "-n2", "--checkpoint-interval=1s", f"--restart-dir={image}", "none",
                                     output="again.out")
        self.wait_versions(f"{job}.0", 1)
        self.assertEqual(again.wait(60), 5, self.text("again.out"))

    def pmix(self):
        srun, job = self.start_srun("--mpi=pmix", "-N1", "-n1", "--checkpoint-interval=1s", *PERL, output="pmix.out")
        self.wait_versions(f"{job}.0", 1)
        self.sh(["scancel", str(job)])
        srun.wait(30)


if __name__ == "__main__":
    harness.main()
