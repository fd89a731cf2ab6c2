#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""In the guest, with the kernel module: icp checkpoint called again and again on one process, with nothing of icp
resident in between, takes incremental versions, and a restart from them is right.

    kept_test.py ICP [unittest arguments]
"""
import json
import os
import pathlib
import signal
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "engine"))
from icp_harness import Case, icp, main, program, wait_for  # noqa: E402  (the path comes first)

# Private and shared memory, a segment, a mapped file. SIGUSR1 changes some of it and writes a line "STEP HASH" to the
# file named; SIGUSR2 writes the line without a change. In step 3 a child comes, which changes its copy each step.
PROGRAM = r"""
import ctypes, hashlib, mmap, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = libc.shmat.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page counts whole, and where one lies is chance
PAGE, PAGES = 4096, 1024
log, backing = sys.argv[1], sys.argv[2]

def fill(at, first, count, seed):
    for i in range(first, first + count):
        ctypes.memmove(at + i * PAGE, hashlib.sha256(b"%d %d" % (seed, i)).digest() * (PAGE // 32), PAGE)

private = libc.mmap(None, PAGES * PAGE, 3, 0x22, -1, 0)
shared = libc.mmap(None, 64 * PAGE, 3, 0x21, -1, 0)
id = libc.shmget(0, 64 * PAGE, 0o1600)
segment = libc.shmat(id, None, 0)
libc.shmctl(id, 0, None)
file = os.open(backing, os.O_RDWR)
of_file = libc.mmap(None, 64 * PAGE, 3, 0x02, file, 0)
os.close(file)
fill(private, 0, PAGES // 2, 1)
fill(shared, 0, 64, 2)
fill(segment, 0, 64, 3)
regions = [(private, PAGES), (shared, 64), (segment, 64), (of_file, 64)]
child = False

def say(step):
    digest = hashlib.sha256()
    for at, count in regions:
        for i in range(count):  # small objects: large ones would come and go in the heap
            digest.update(ctypes.string_at(at + i * PAGE, PAGE))
    with open(log + (".child" if child else ""), "a") as out:
        out.write(f"{step} {digest.hexdigest()}\n")

def change(step):
    global child, regions
    fill(private, 10 * step, 5, 100 + step)
    fill(private, PAGES // 2 + 10 * step, 2, 200 + step)
    libc.madvise(private + (100 + step) * PAGE, PAGE, 4)              # discarded
    ctypes.memset(private + (200 + step) * PAGE, 0, PAGE)             # zeros
    fill(of_file, 5 * step, 2, 300 + step)
    libc.madvise(of_file + 5 * (step - 1) * PAGE, PAGE, 4)            # the file's content again
    if not child:
        fill(shared, step, 1, 400 + step)
        fill(segment, step, 1, 500 + step)
    if step == 2:
        # Away, and something else in its place; and a hole.
        moved = libc.mremap(private + 300 * PAGE, 8 * PAGE, 8 * PAGE, 1)
        libc.mmap(private + 300 * PAGE, 8 * PAGE, 3, 0x32, -1, 0)
        fill(private, 302, 1, 600)
        libc.munmap(of_file + 60 * PAGE, 4 * PAGE)
        regions = [(private, PAGES), (shared, 64), (segment, 64), (of_file, 60), (moved, 8)]
    if step == 3:
        child = os.fork() == 0

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2])
step = 0
say(0)
while True:
    if signal.sigwait([signal.SIGUSR1, signal.SIGUSR2]) == signal.SIGUSR1:
        step += 1
        change(step)
    say(step)
"""


class Kept(Case):
    def lines(self, child=False):
        path = pathlib.Path(f"{self.log}{'.child' if child else ''}")
        return path.read_text().splitlines() if path.exists() else []

    def step(self, *pids, signum=signal.SIGUSR1):
        """Has the processes say what their memory holds, after a change. Returns what they said."""
        said = []
        for index, pid in enumerate(pids):
            before = len(self.lines(index > 0))
            os.kill(pid, signum)
            wait_for(lambda: len(self.lines(index > 0)) > before, what="an answer")
            said.append(self.lines(index > 0)[-1])
        return said

    def checkpoint(self, pid, *options, directory=None):
        result = icp("checkpoint", "--dir", directory or self.image, "--pid", pid, "--json", *options)
        self.assert_ends(result, 0)
        stats = json.loads(result.stdout)["stats"]
        self.assertEqual(stats["tracker"], "kernel-module", stats)
        return stats

    def test_incremental_with_nothing_resident(self):
        self.log = self.dir / "said"
        backing = self.dir / "backing"
        backing.write_bytes(os.urandom(64 * 4096))
        process = self.start("/usr/bin/python3", "-c", PROGRAM, self.log, backing)
        wait_for(self.lines, what="the program")

        first = self.checkpoint(process.pid)
        self.assertTrue(first["full"])
        for _ in range(2):
            self.step(process.pid)
            self.assertFalse((later := self.checkpoint(process.pid))["full"])
            self.assertLess(later["pages_written"] * 3, first["pages_written"])
        # A new process is new; its parent goes on.
        self.step(process.pid)
        later = self.checkpoint(process.pid)
        self.assertEqual((later["full"], later["processes"]), (False, 2))
        child = int(pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        wait_for(lambda: self.lines(child=True), what="the child")
        said = self.step(process.pid, child)
        last = self.checkpoint(process.pid, "--kill")
        self.assertFalse(last["full"])
        self.assertLess(last["pages_written"] * 2, first["pages_written"])
        process.wait(200)

        verified = icp("verify", self.image)
        self.assert_ends(verified, 0)
        restart = self.start(program(), "restart", "--dir", self.image)
        inner = wait_for(lambda: self.restored_tree(restart.pid), what="the restored processes")
        self.assertEqual(self.step(*inner, signum=signal.SIGUSR2), said)

    def test_another_directory_is_another_chain(self):
        self.log = self.dir / "said"
        backing = self.dir / "backing"
        backing.write_bytes(bytes(64 * 4096))
        process = self.start("/usr/bin/python3", "-c", PROGRAM, self.log, backing)
        wait_for(self.lines, what="the program")
        other = self.dir / "other"
        self.assertTrue(self.checkpoint(process.pid)["full"])
        self.assertTrue(self.checkpoint(process.pid, directory=other)["full"])
        self.step(process.pid)
        # What was written since this directory's last version went into the other's.
        self.assertTrue(self.checkpoint(process.pid)["full"])
        self.assertFalse(self.checkpoint(process.pid)["full"])
        # Folded, the version is the same one with other files.
        folded = icp("compact", self.image)
        self.assert_ends(folded, 0)
        self.step(process.pid)
        self.assertFalse(self.checkpoint(process.pid)["full"])
        self.assert_ends(icp("verify", self.image), 0)

    def restored_tree(self, pid):
        """Parent and child of the program below icp restart, in this order; empty until both are there."""
        def children(of):
            try:
                return [int(word) for word in pathlib.Path(f"/proc/{of}/task/{of}/children").read_text().split()]
            except OSError:
                return []
        for init in children(pid):
            for parent in children(init):
                if inner := children(parent):
                    return [parent, inner[0]]
        return []


if __name__ == "__main__":
    main(__doc__)
