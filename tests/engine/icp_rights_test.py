#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is done for a user that the user could not do: icp of root, on trees of an ordinary user."""
import fcntl
import os
import pathlib
import subprocess
import unittest

import icp_harness
from icp_harness import icp, program, wait_for

NOBODY = 65534
CHECKPOINT_RESTORE = 1 << 40

# Holds a file of /dev/shm open for writing, until it is killed.
HOLDS_SHM = """
import sys, time
f = open(sys.argv[1], "w+"); f.write(sys.argv[2]); f.flush(); print("ready", flush=True)
while True: time.sleep(0.05)
"""

# Does nothing, until it is killed.
SHOWS = """
import sys, time
print("ready", flush=True)
while True: time.sleep(0.05)
"""


def as_nobody(*command):
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", "-i", "PATH=/usr/bin:/bin", *command]


def status(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def children(pid):
    return [int(c) for t in pathlib.Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]


@unittest.skipUnless(icp_harness.ROOT, "needs root, whose rights are in question")
class Rights(icp_harness.Case):
    def setUp(self):
        super().setUp()
        os.chmod(self.dir, 0o755)
        self.users = self.dir / "users"
        self.users.mkdir(mode=0o700)
        os.chown(self.users, NOBODY, NOBODY)
        self.image = self.users / "image"

    def nobodys(self, *command):
        """A program of nobody's that has said that it is ready."""
        process = self.start(*as_nobody(*map(str, command)), cwd="/")
        out = self.out
        for stream in (out, self.err):
            os.chown(stream, NOBODY, NOBODY)  # who opens it again
        wait_for(lambda: out.read_text() == "ready\n", what="the program")
        return process

    def restart(self):
        """icp restart --detach: its exit code, what it says, and the restored process's pid."""
        out = self.dir / "restarted"
        with out.open("wb") as to:
            result = subprocess.run([program(), "restart", "--dir", self.image, "--detach"], stdin=subprocess.DEVNULL,
                                    stdout=to, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        pid = int(out.read_text() or 0)
        if pid:
            self.own(pid)
        return result.returncode, result.stderr, pid

    def detached(self):
        code, said, pid = self.restart()
        self.assertEqual((code, said), (0, ""))
        return pid

    def test_the_worker_is_the_user_and_has_one_capability(self):
        process = self.nobodys("/usr/bin/python3", "-c", SHOWS)
        watch = self.start(program(), "watch", "--dir", self.image, "--pid", process.pid, "--interval", "1h")
        wait_for(lambda: any(self.image.glob("v0*")), what="a version")
        worker = status(watch.pid)
        self.assertEqual(worker["Uid"].split(), [str(NOBODY)] * 4)
        self.assertEqual(worker["Gid"].split(), [str(NOBODY)] * 4)
        self.assertEqual((int(worker["CapPrm"], 16), int(worker["CapEff"], 16)), (CHECKPOINT_RESTORE,) * 2)
        self.assertEqual((worker["NoNewPrivs"], worker["Seccomp"]), ("1", "2"))
        self.assertEqual(pathlib.Path(f"/proc/{watch.pid}/oom_score_adj").read_text(), "1000\n")
        brokers = [child for child in children(watch.pid) if status(child)["Name"] == "icp-broker"]
        self.assertEqual(len(brokers), 1)
        self.assertEqual(status(brokers[0])["Uid"].split()[1], "0")

    def test_root_looks_at_an_image_with_its_owners_rights(self):
        process = self.nobodys("/usr/bin/python3", "-c", SHOWS)
        self.assertEqual(icp("checkpoint", "--dir", self.image, "--pid", process.pid, "--kill").returncode, 0)
        shown = icp("show", self.image, "--json")
        self.assertGreater(len(shown.stdout), 4096)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(writing, 1031, 4096)  # F_SETPIPE_SZ: it waits in the middle of what it prints
        rest = os.fdopen(reading)
        self.addCleanup(rest.close)
        show = self.start(program(), "show", self.image, "--json", stdout=writing)
        os.close(writing)
        wait_for(lambda: status(show.pid)["Uid"].split() == [str(NOBODY)] * 4, what="the rights of its owner")
        seen = status(show.pid)
        owner = os.stat(f"/proc/{show.pid}/environ").st_uid  # of the directory itself it is always the user
        self.assertEqual(rest.read(), shown.stdout)
        self.assertEqual(seen["Gid"].split(), [str(NOBODY)] * 4)
        self.assertNotIn("0", seen["Groups"].split())
        self.assertEqual({int(seen[f"Cap{which}"], 16) for which in ("Prm", "Eff", "Inh", "Amb")}, {0})
        self.assertEqual(owner, 0, "the user may not look into it")

    def test_the_broker_ends_with_its_worker(self):
        process = self.nobodys("/usr/bin/python3", "-c", SHOWS)
        watch = self.start(program(), "watch", "--dir", self.image, "--pid", process.pid, "--interval", "1h")
        wait_for(lambda: any(self.image.glob("v0*")), what="a version")
        below = children(watch.pid)
        watch.kill()
        watch.wait()
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in below), what="the broker to end")
        self.assertIsNone(process.poll())

    def test_restored_threads_have_no_capability(self):
        script = "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        process = self.nobodys("/usr/bin/python3", "-c", script + SHOWS)
        self.assertEqual(icp("checkpoint", "--dir", self.image, "--pid", process.pid, "--kill").returncode, 0)
        pid = self.detached()
        threads = list(pathlib.Path(f"/proc/{pid}/task").iterdir())
        self.assertEqual(len(threads), 4)
        for thread in threads:
            text = (thread / "status").read_text()
            for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"]:
                self.assertRegex(text, rf"{name}:\t0000000000000000")
            self.assertIn("NoNewPrivs:\t1", text)
            self.assertRegex(text, rf"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}")

    def test_limits_and_priorities_are_not_more_than_a_fresh_process_has(self):
        process = self.nobodys("/usr/bin/python3", "-c", SHOWS)
        self.assertEqual(icp("checkpoint", "--dir", self.image, "--pid", process.pid, "--kill").returncode, 0)
        fresh = self.nobodys("/usr/bin/python3", "-c", SHOWS)
        pid = self.detached()
        def view(of):
            stat = pathlib.Path(f"/proc/{of}/stat").read_text().rpartition(")")[2].split()
            return (pathlib.Path(f"/proc/{of}/limits").read_text(), stat[15:17], stat[37:39],
                    pathlib.Path(f"/proc/{of}/oom_score_adj").read_text(), status(of)["VmLck"])
        self.assertEqual(view(pid), view(fresh.pid))

    def test_a_link_to_a_sysctl_is_not_followed_with_roots_rights(self):
        target = pathlib.Path("/proc/sys/kernel/domainname")
        before = target.read_text()
        name = f"/dev/shm/icp-rights-{os.getpid()}"
        self.addCleanup(lambda: target.read_text() == before or target.write_text(before))
        self.addCleanup(lambda: os.path.lexists(name) and os.unlink(name))
        process = self.nobodys("/usr/bin/python3", "-c", HOLDS_SHM, name, "not-for-sysctl")
        self.assertEqual(icp("checkpoint", "--dir", self.image, "--pid", process.pid, "--kill").returncode, 0)
        subprocess.run(as_nobody("sh", "-c", f"rm {name}; ln -s {target} {name}"), check=True)
        self.assertNotEqual(self.restart()[0], 0)
        self.assertEqual(target.read_text(), before)

    def test_what_its_user_may_not_look_into_is_refused(self):
        process = self.nobodys("/usr/bin/python3", "-c",
                               "import ctypes\nctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n" + SHOWS)  # PR_SET_DUMPABLE
        for command in ["check", "checkpoint"]:
            where = ["--dir", self.image] if command == "checkpoint" else []
            result = icp(command, *where, "--pid", process.pid)
            self.assertNotEqual(result.returncode, 0)
            self.assertRegex(result.stdout + result.stderr, f"user {NOBODY} may not look into it")
        self.assertFalse(list(self.users.rglob("*.bin")))

    def test_a_program_that_may_not_be_read_is_refused(self):
        copy = self.dir / "sleep"
        copy.write_bytes(pathlib.Path("/usr/bin/sleep").read_bytes())
        copy.chmod(0o711)
        process = subprocess.Popen(as_nobody(str(copy), "1000"), stdin=subprocess.DEVNULL, cwd="/")
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        wait_for(lambda: status(process.pid)["Name"] == "sleep", what="the program")
        result = icp("checkpoint", "--dir", self.image, "--pid", process.pid)
        self.assertRegex(result.stderr, f"user {NOBODY} may not look into it")

    # A program with other rights that holds what its caller may not read, begun at some moment of a version: a child waits
    # for the directory of the version to appear, and so many milliseconds more.
    EXECUTES = """
import glob, os, sys, time
image, program, secret, fifo, delay = sys.argv[1:5] + [float(sys.argv[5])]
before = set(os.listdir(image)) if os.path.isdir(image) else set()
ballast = bytearray(os.urandom(1 << 20)) * 24
if os.fork() == 0:
    print("ready", flush=True)
    end = time.monotonic() + 20
    while time.monotonic() < end and not (set(os.listdir(image)) if os.path.isdir(image) else set()) - before: pass
    time.sleep(delay / 1000)
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.execv(program, [program, secret, fifo])
while True: time.sleep(0.05)
"""

    def other_rights(self, mode, group):
        """cat with rights of its own, and a file that takes them."""
        program, secret = self.dir / f"cat{mode:o}", self.dir / f"secret{mode:o}"
        program.write_bytes(pathlib.Path("/usr/bin/cat").read_bytes())
        os.chown(program, 0, group)
        program.chmod(mode)
        text = f"SECRET-OF-{mode:o}-" + os.urandom(12).hex()
        secret.write_text(text + "\n")
        os.chown(secret, 0, group)
        secret.chmod(0o640 if group else 0o600)
        return program, secret, text

    def test_what_a_program_with_other_rights_holds_is_in_no_version(self):
        fifo = self.dir / "fifo"
        os.mkfifo(fifo)
        fifo.chmod(0o666)
        for mode, group in ((0o4755, 0), (0o2755, 42)):
            program, secret, text = self.other_rights(mode, group)
            for delay in (0, 1, 3, 8, 20, 60):
                with self.subTest(mode=f"{mode:o}", delay=delay):
                    process = self.nobodys("/usr/bin/python3", "-c", self.EXECUTES, self.image, program, secret, fifo, delay)
                    for _ in range(3):
                        icp("checkpoint", "--dir", self.image, "--pid", process.pid)
                    for child in children(process.pid):
                        self.own(child)
                    found = subprocess.run(["grep", "-r", "-a", "-l", "-F", text, self.users], capture_output=True, text=True, check=False)
                    self.assertEqual(found.stdout, "")
                    process.kill()
                    process.wait()

    def test_a_file_that_may_only_be_written_is_in_no_version(self):
        name = pathlib.Path(f"/dev/shm/icp-rights-{os.getpid()}-box")
        self.addCleanup(name.unlink)
        text = "WRITE-ONLY-" + os.urandom(12).hex()
        name.write_text(text)
        os.chown(name, 1, 1)
        name.chmod(0o622)
        process = self.nobodys("/usr/bin/python3", "-c", "import os, sys\nf = os.open(sys.argv[1], os.O_WRONLY)\n" + SHOWS, name)
        result = icp("checkpoint", "--dir", self.image, "--pid", process.pid)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("Permission denied", result.stderr)
        self.assertNotEqual(subprocess.run(["grep", "-r", "-q", "-a", "-F", text, self.users], check=False).returncode, 0)

    def test_a_copy_of_an_image_does_not_make_its_program_roots(self):
        process = self.nobodys("/usr/bin/python3", "-c", SHOWS)
        self.assertEqual(icp("checkpoint", "--dir", self.image, "--pid", process.pid, "--kill").returncode, 0)
        subprocess.run(["cp", "-r", self.image, self.dir / "copy"], check=True)
        result = icp("restart", "--dir", self.dir / "copy", "--detach")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("--user", result.stderr)

    def test_what_a_user_can_exchange_is_none_of_roots_images(self):
        """Between the look at root's mark and the restart a user could put the copy of an own image there."""
        def roots():
            process = self.start("/usr/bin/python3", "-c", SHOWS, cwd="/")
            wait_for(lambda: self.out.read_text() == "ready\n", what="the program")
            return process

        own = self.dir / "own"
        for image in (self.image, own):
            result = icp("checkpoint", "--dir", image, "--pid", roots().pid, "--kill")
            self.assertEqual(result.returncode, 0, result.stderr)
        (self.users / "link").symlink_to(self.dir)
        for path in (self.image, self.users / "link" / ".." / self.dir.name / "users" / "image"):
            result = icp("restart", "--dir", path, "--detach")
            self.assertNotEqual(result.returncode, 0)
            self.assertIn(f"could put something else at {self.image}", result.stderr)
            self.assertIn("--user root", result.stderr)
            self.assertIn("--user root", icp("verify", "--restore", path).stderr)
        # By whatever links: it is where only root can write.
        result = icp("restart", "--dir", self.users / "link" / "own", "--detach")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.own(int(result.stdout))


if __name__ == "__main__":
    icp_harness.main(__doc__)
