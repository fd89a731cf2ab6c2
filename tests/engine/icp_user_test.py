#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine without root: programs started, checkpointed, killed and restarted by an ordinary user.

    icp_user_test.py ICP [unittest arguments]

To be run as an ordinary user (tests/engine/as_user). Ends only processes that it started.
"""
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import unittest

import icp_harness
from icp_harness import ABLE, ROOT, Case, icp, main, program, wait_for

# Shared anonymous memory and a lock in it, between three processes.
COUNTS = """
import mmap, multiprocessing, os, time
memory, lock = mmap.mmap(-1, 1 << 20), multiprocessing.Lock()
children = []
for i in range(3):
    pid = os.fork()
    if pid == 0:
        for turn in range(200):
            with lock:
                memory[:8] = (int.from_bytes(memory[:8], "little") + 1).to_bytes(8, "little")
            time.sleep(0.01)
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
print("count", int.from_bytes(memory[:8], "little"))
"""

NUMPY = """
import numpy, time
a = numpy.arange(40000, dtype=float).reshape(200, 200) / 40000
for i in range(60):
    a = a @ a.T
    a /= numpy.abs(a).max()
    print("step", i, flush=True)
    time.sleep(0.05)
print("sum", float(a.sum()).hex())
"""


def built(name):
    path = icp_harness.build() / "tests" / "programs" / name
    if not os.access(path, os.X_OK):
        raise unittest.SkipTest(f"{path} is not built, or out of reach")
    return path


@unittest.skipIf(ROOT, "for an ordinary user")
@unittest.skipUnless(ABLE, "needs user namespaces")
class WithoutRoot(Case):
    def killed_and_restarted(self, command, progress, versions=3):
        """What `command` prints at the end of its restarted life. It is killed once `versions` versions are taken and
        `progress` is in its output, and the versions' directory is all that is left."""
        run = self.start(program(), "run", "--dir", self.image, "--interval", "0.4s", "--", *command)
        out, err = self.out, self.err
        wait_for(lambda: len(self.versions()) >= versions and progress in out.read_text(), what=f"{versions} versions")
        tree = [run.pid]
        for pid in tree:
            with contextlib.suppress(OSError):
                for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                    tree += [int(child) for child in (task / "children").read_text().split()]
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.wait()
        # A killed program's segments stay in the machine's namespace; the restarted one has its own.
        for row in pathlib.Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            _, number, _, _, creator, _, attached, *_ = row.split()
            if int(creator) in tree and attached == "0":
                subprocess.run(["ipcrm", "-m", number], check=False)
        self.assertNotIn("no version taken", err.read_text())
        with out.open("a") as stdout:
            result = subprocess.run([program(), "restart", "--dir", self.image], stdin=subprocess.DEVNULL, stdout=stdout,
                                    stderr=subprocess.PIPE, text=True, timeout=120, check=False)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return out.read_text().splitlines()[-1]

    def uninterrupted(self, *command):
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=120,
                              check=True).stdout.splitlines()[-1]

    def test_numpy(self):
        if subprocess.run(["/usr/bin/python3", "-c", "import numpy"], stderr=subprocess.DEVNULL, check=False).returncode:
            self.skipTest("there is no numpy")
        command = ["/usr/bin/python3", "-c", NUMPY]
        self.assertEqual(self.killed_and_restarted(command, "step 20"), self.uninterrupted(*command))

    def test_anonymous_shared_memory(self):
        self.assertEqual(self.killed_and_restarted(["/usr/bin/python3", "-c", COUNTS], ""), "count 600")

    def test_system_v_memory(self):
        mgs = str(built("mgs"))
        end = self.killed_and_restarted([mgs, "--step-ms", "10"], "column 60")
        self.assertEqual(end, self.uninterrupted(mgs))

    def test_system_v_semaphores_and_messages(self):
        ring = str(built("fork_sysv"))
        end = self.killed_and_restarted([ring, "--rounds", "400", "--us", "3000"], "round 100")
        self.assertEqual(end, self.uninterrupted(ring, "--rounds", "400"))

    def test_mpich_on_one_node(self):
        if shutil.which("mpiexec.mpich") is None:
            self.skipTest("MPICH is not installed")
        words = ["mpiexec.mpich", "-n", "2", str(built("allreduce")), "--rounds", "40"]
        end = self.killed_and_restarted([*words, "--step-ms", "100"], "ROUND 10")
        self.assertEqual(end, self.uninterrupted(*words, "--step-ms", "0"))

    def test_versions_of_a_restarted_program(self):
        """A restarted program is in a user namespace, and can be checkpointed again from outside of it."""
        process = self.start("/usr/bin/python3", "-c", "import time\nfor i in range(150): print(i, flush=True); time.sleep(0.02)")
        out = self.out
        for moment in ("10\n", "40\n", "70\n"):
            wait_for(lambda: moment in out.read_text(), what="the program")
            self.assert_ends(icp("checkpoint", "--kill", "--dir", self.image, "--pid", process.pid if moment == "10\n" else pid), 0)
            with out.open("a") as stdout:
                restart = subprocess.run([program(), "restart", "--detach", "--pid-file", self.dir / "pid", "--dir", self.image],
                                         stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True,
                                         timeout=60, check=False)
            self.assertEqual((restart.returncode, restart.stderr), (0, ""))
            pid = int((self.dir / "pid").read_text())
            self.own(pid)
        wait_for(lambda: "149\n" in out.read_text(), what="its end")

    def test_what_takes_root_is_refused(self):
        for command in (["checkpoint", "--dir", self.image], ["check"]):
            self.assert_one_error(icp(*command, "--pid", 2), 4, "process 2 is user root's, not yours; run icp as that user")
        result = icp("run", "--dir", self.image, "--interval", "1h", "--user", "root", "--", "true")
        self.assert_one_error(result, 125, "only root can work for another user")
        self.assertFalse(self.image.exists())

    def test_a_host_without_user_namespaces(self):
        """The sentence names the setting; versions are taken all the same."""
        self.assert_ends(icp("run", "--dir", self.image, "--interval", "0.2s", "--", "sleep", "1"), 0)
        command = f"echo 0 >/proc/sys/user/max_user_namespaces && exec {program()} restart --dir {self.image}"
        result = subprocess.run(["unshare", "--user", f"--map-user={os.getuid()}", f"--map-group={os.getgid()}", "--keep-caps",
                                 "sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        self.assert_one_error(result, 125, "user namespace.*sysctl user.max_user_namespaces")


if __name__ == "__main__":
    main(__doc__)
