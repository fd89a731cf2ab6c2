#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""icp verify --restore beside the running job: says what a restart would, and touches nothing that the job uses.

    icp_rehearsal_test.py ICP [unittest arguments]
"""
import os
import pathlib
import signal
import stat
import subprocess
import time
import unittest

from icp_harness import ABLE, Case, icp, main, wait_for

# Everything that two processes cannot have at once, or would notice of each other: ports, names of Unix sockets (paths and
# abstract ones), locks on files, a FIFO with data in it, a file mapped shared, a named object in /dev/shm, System V
# objects with undo, a working directory that is gone, a watch over its own directory. At SIGUSR1 it looks at all of it.
HOLDER = r"""
import ctypes, fcntl, mmap, os, signal, socket, struct, sys, time
base, name = sys.argv[1], sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(base)
seen = []
def words(name, text):
    with open(name, "w") as file:
        file.write(text)
words("data", "data\n" * 1000)
words("mapped", "m" * 8192)
log = open("log", "a")
log.write("begun\n"); log.flush()
data = open("data", "r+b")
fcntl.flock(data, fcntl.LOCK_EX)
fcntl.lockf(log, fcntl.LOCK_EX)
os.mkfifo("fifo")
fifo = os.open("fifo", os.O_RDWR | os.O_NONBLOCK)
os.write(fifo, b"in the fifo")
file = open("mapped", "r+b")
mapped = mmap.mmap(file.fileno(), 8192)
mapped[:4] = b"MINE"
shm = "/dev/shm/" + name
words(shm, "s" * 4096)
shared_file = open(shm, "r+b")
shared = mmap.mmap(shared_file.fileno(), 4096)
tcp = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(tcp.getsockname())
server = tcp.accept()[0]
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
unix = socket.socket(socket.AF_UNIX); unix.bind(base + "/socket"); unix.listen()
abstract = socket.socket(socket.AF_UNIX); abstract.bind("\0" + name); abstract.listen()
segment = libc.shmget(0, 4096, 0o600 | 0o1000)
os.mkdir("gone"); os.chdir("gone"); os.rmdir(base + "/gone")
opened = os.open(base, os.O_RDONLY)   # what is watched is found by it where nobody is root
watch = libc.inotify_init1(os.O_NONBLOCK)
libc.inotify_add_watch(watch, base.encode(), 0xfce)   # all but reading
time.sleep(0.1)
try:
    os.read(watch, 65536)
except BlockingIOError:
    pass
go = []
signal.signal(signal.SIGUSR1, lambda *_: go.append(1))
print("ready", segment, flush=True)
while not go:
    time.sleep(0.02)
try:
    text = os.read(watch, 65536)
    while text:
        _, mask, _, length = struct.unpack_from("iIII", text)
        seen.append(f"event {mask:#x} of {text[16:16 + length]}")
        text = text[16 + length:]
except BlockingIOError:
    pass
if os.read(fifo, 100) != b"in the fifo":
    seen.append("the FIFO holds something else")
for one, back in ((("127.0.0.1", tcp.getsockname()[1]), tcp),):
    with socket.create_connection(one) as again, back.accept()[0] as there:
        again.send(b"x")
        if there.recv(1) != b"x":
            seen.append("TCP")
client.send(b"hello")
if server.recv(5) != b"hello":
    seen.append("the connection")
with socket.socket(socket.AF_UNIX) as one:
    one.connect(base + "/socket")
with socket.socket(socket.AF_UNIX) as one:
    one.connect("\0" + name)
libc.shmctl(segment, 0, None)
os.unlink(shm)
print("RESULT", seen, flush=True)
"""


def state_of(directory):
    """All that can be seen of the files below it, and of /dev/shm and System V objects."""
    found = {}
    for path in sorted([*pathlib.Path(directory).rglob("*"), *pathlib.Path("/dev/shm").glob("icp-rehearsal*")]):
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        found[str(path)] = (info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, content)
    found["System V"] = [line.split()[:2] for kind in ("shm", "sem", "msg")
                         for line in pathlib.Path("/proc/sysvipc", kind).read_text().splitlines()]
    return found


@unittest.skipUnless(ABLE, "needs root or user namespaces")
class Rehearsal(Case):
    def start_holder(self):
        base, self.name = self.dir / "base", f"icp-rehearsal-{os.getpid()}-{time.monotonic_ns()}"
        base.mkdir()
        self.addCleanup(pathlib.Path("/dev/shm", self.name).unlink, missing_ok=True)
        holder = self.start("/usr/bin/python3", "-c", HOLDER, base, self.name)
        said = wait_for(lambda: self.out.read_text().split() if "\n" in self.out.read_text() else self.err.read_text(), what="the holder")
        self.assertEqual(said[0], "ready", said)
        self.addCleanup(subprocess.run, ["ipcrm", "-m", said[1]], stderr=subprocess.DEVNULL, check=False)
        return holder, base

    def test_touches_nothing(self):
        holder, base = self.start_holder()
        taken = icp("checkpoint", "--pid", holder.pid, "--dir", self.image)
        self.assert_ends(taken, 0)
        before = state_of(base)
        for _ in range(2):
            result = icp("verify", "--restore", self.image)
            self.assert_ends(result, 0)
            self.assertEqual(result.stdout, "version 1: whole, restores\n", result.stderr)
        self.assertEqual(state_of(base), before)
        holder.send_signal(signal.SIGUSR1)
        self.assertEqual(holder.wait(20), 0, self.err.read_text())
        self.assertIn("RESULT []", self.out.read_text())

    def test_says_what_a_restart_would(self):
        holder, base = self.start_holder()
        # One that was there before: a newer one is put aside.
        (base.parent / "other").write_bytes((base / "mapped").read_bytes())
        self.assert_ends(icp("checkpoint", "--pid", holder.pid, "--dir", self.image), 0)
        os.rename(base / "mapped", base.parent / "mapped")
        os.rename(base.parent / "other", base / "mapped")
        result = icp("verify", "--restore", self.image)
        self.assert_ends(result, 1, "version 1: cannot be restored: .*mapped is another file than at the checkpoint")
        self.assertEqual(result.stdout, "version 1: whole, does not restore\n")
        self.assert_ends(icp("verify", self.image), 0)


if __name__ == "__main__":
    main(__doc__)
