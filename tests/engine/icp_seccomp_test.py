#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Seccomp filters of an ordinary user's program: root's broker reads them, and nothing they forbid is called."""
import os
import subprocess
import time
import unittest

import icp_harness
from icp_harness import icp, program, wait_for

NOBODY = 65534
KILL_PROCESS, ERRNO = 0x80000000, 0x00050000
GETPPID, SIGALTSTACK, KEYCTL = 110, 131, 250

# Arguments: a file that says when to go on, then pairs of a system call and what a filter of its own answers to it.
FILTERED = """
import ctypes, os, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def forbid(call, action):
    code = struct.pack("=" + "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, call, 0x06, 0, 0, action, 0x06, 0, 0, 0x7fff0000)
    held = ctypes.create_string_buffer(code)
    libc.prctl(38, 1, 0, 0, 0)
    assert libc.prctl(22, 2, struct.pack("HxxxxxxQ", 4, ctypes.addressof(held)), 0, 0) == 0
def errno_of(call):
    return ctypes.get_errno() if libc.syscall(call, 0) == -1 else 0
def other():
    forbid(124, 0x00050000 | 72)
    ready.set()
    go.wait()
    print(errno_of(124), flush=True)
ready, go = threading.Event(), threading.Event()
for call, action in zip(sys.argv[2::2], sys.argv[3::2]): forbid(int(call), int(action))
thread = threading.Thread(target=other)
thread.start()
ready.wait()
print("ready", flush=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.02)
go.set()
thread.join()
print(errno_of(110), errno_of(124), flush=True)
"""


@unittest.skipUnless(icp_harness.ROOT, "needs root's broker")
class Seccomp(icp_harness.Case):
    def setUp(self):
        super().setUp()
        os.chmod(self.dir, 0o755)
        users = self.dir / "users"
        users.mkdir(mode=0o700)
        os.chown(users, NOBODY, NOBODY)
        self.image = users / "image"
        self.go_on = self.dir / "go"

    def filtered(self, *filters):
        """A program of nobody's under these filters, and its output."""
        process = self.start("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "/usr/bin/python3",
                             "-c", FILTERED, self.go_on, *filters, cwd="/")
        out = self.out
        for stream in (out, self.err):
            os.chown(stream, NOBODY, NOBODY)  # who opens it again
        wait_for(lambda: out.read_text() == "ready\n", what="the program")
        return process, out

    def restart(self):
        restarted = self.dir / "restarted"
        with restarted.open("wb") as to:
            result = subprocess.run([program(), "restart", "--dir", self.image, "--detach"], stdin=subprocess.DEVNULL,
                                    stdout=to, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        pid = int(restarted.read_text())
        self.own(pid)
        return pid

    def checkpoint(self, pid, *arguments):
        return icp("checkpoint", "--dir", self.image, "--pid", pid, *arguments)

    def test_filters_come_back(self):
        process, out = self.filtered(GETPPID, ERRNO | 71)
        for _ in range(2):
            self.assert_ends(self.checkpoint(process.pid), 0)
        self.assert_ends(self.checkpoint(process.pid, "--kill"), 0)
        self.assert_ends(self.checkpoint(self.restart(), "--kill"), 0)
        self.restart()
        self.go_on.touch()
        wait_for(lambda: out.read_text().count("\n") >= 3, what="the end")
        self.assertEqual(out.read_text(), "ready\n72\n71 0\n")

    def test_a_call_that_can_be_done_without_is_left_out(self):
        process, _ = self.filtered(KEYCTL, KILL_PROCESS)
        self.assert_ends(self.checkpoint(process.pid), 0)
        self.go_on.touch()
        self.assertEqual(process.wait(20), 0)

    def test_what_would_end_the_program_is_refused(self):
        process, _ = self.filtered(SIGALTSTACK, KILL_PROCESS)
        result = self.checkpoint(process.pid)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("has a seccomp filter that forbids sigaltstack", result.stderr)
        time.sleep(0.1)
        self.assertIsNone(process.poll())


if __name__ == "__main__":
    icp_harness.main(__doc__)
