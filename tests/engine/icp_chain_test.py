#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Chains of versions and lazy restarts by the command icp, on real processes.

    icp_chain_test.py ICP [unittest arguments]

Needs root. Ends only processes that it started.
"""
import json
import os
import pathlib
import re
import signal
import subprocess
import time
import unittest

from icp_harness import ABLE, Case, ROOT, build, icp, main, program, wait_for

# Writes the same over 8 MiB, and something new over 1 MiB, again and again.
REWRITER = r"""
import mmap, os, time
same = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
new = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
content = os.urandom(8 << 20)
same[:] = content
print("ready", flush=True)
while True:
    same[:] = content
    new[:] = os.urandom(1 << 20)
    time.sleep(0.05)
"""

# 64 MiB of known content. On SIGUSR1 (after a restart) it discards, moves and forks at once, checks in parent and child that
# every page is what it should be, and says so.
MOVER = r"""
import ctypes, mmap, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE, PAGES = 4096, 16384
base = libc.mmap(None, PAGE * PAGES, 3, 0x22, -1, 0)
page_of = lambda i: (i * 2654435761 % 2**32).to_bytes(4, "little") * 1024
for i in range(PAGES):
    ctypes.memmove(base + i * PAGE, page_of(i), PAGE)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
libc.madvise(base + 100 * PAGE, 50 * PAGE, 4)             # DONTNEED: zeros from now on
moved = libc.mremap(base + 8000 * PAGE, 1000 * PAGE, 1200 * PAGE, 1)  # elsewhere, and longer
libc.munmap(base + 12000 * PAGE, 10 * PAGE)
libc.mprotect(base + 4000 * PAGE, 10 * PAGE, 1)           # splits the mapping
child = os.fork()
def get(at):
    return ctypes.string_at(at, PAGE)
wrong = 0
order = list(range(PAGES))
if child == 0:
    order.reverse()
for i in order:
    if 12000 <= i < 12010:
        continue
    at = moved + (i - 8000) * PAGE if 8000 <= i < 9000 else base + i * PAGE
    wrong += get(at) != (bytes(PAGE) if 100 <= i < 150 else page_of(i))
wrong += any(get(moved + i * PAGE) != bytes(PAGE) for i in range(1000, 1200))
if child == 0:
    os._exit(wrong != 0)
_, status = os.waitpid(child, 0)
print(f"RESULT parent {wrong} child {status}", flush=True)
time.sleep(float(sys.argv[1]))
"""


def programs():
    return build() / "tests" / "programs"


def work(rounds, round_ms=50, mib=16, percent=3):
    return [programs() / "malloc_and_write", "--mib", mib, "--percent", percent, "--rounds", rounds, "--round-ms", round_ms, "--seed", 5]


def result_of(text):
    return re.search(r"^RESULT .*$", text, re.MULTILINE)[0]


class Runs(Case):
    """Programs under icp run."""

    def reference(self, rounds):
        done = subprocess.run([*map(str, work(rounds, 0))], stdout=subprocess.PIPE, text=True, check=True)
        return result_of(done.stdout)

    def start_run(self, command, interval="0.2s", options=()):
        return self.start(program(), "run", "--dir", self.image, "--interval", interval, *options, "--", *command)

    def child_of(self, icp_process):
        """The pid of the program under icp run: the child of icp's child, the keeper."""
        def look():
            pid = icp_process.pid
            for _ in range(2):
                children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                if not children:
                    return None
                pid = int(children[0])
            return pid
        return wait_for(look, what="the program")

    def verified(self):
        self.assert_ends(icp("verify", self.image), 0)

    def restart(self, *options):
        return icp("restart", "--dir", self.image, *options, timeout=120)


@unittest.skipUnless(ABLE, "needs root or user namespaces")
class Chains(Runs):
    def test_compaction_while_the_job_goes_on(self):
        rounds = 120
        run = self.start_run(work(rounds), options=["--compression", "zstd", "--dedup"])
        out = self.out
        folds = 0
        end = time.monotonic() + 60
        while folds < 4 and time.monotonic() < end:
            wait_for(lambda: len(self.versions()) >= 3, what="three versions")
            done = icp("compact", self.image, "--json", "--compression", "lz4" if folds % 2 else "none")
            self.assert_ends(done, 0)
            folds += json.loads(done.stdout)["version"] != 0
        self.assertNotIn("RESULT", out.read_text())
        last = max(self.versions())
        wait_for(lambda: max(self.versions()) > last, what="a version after the last fold")
        os.kill(self.child_of(run), signal.SIGKILL)
        run.wait(timeout=30)
        shown = [json.loads(icp("show", "--json", "--version", n, self.image).stdout) for n in self.versions()]
        stats = [one.get("manifest", one)["stats"] for one in shown]
        self.assertFalse(stats[-1]["full"], "the session did not go on from the fold")
        self.verified()
        again = self.restart()
        self.assert_ends(again, 0)
        self.assertEqual(result_of(out.read_text()), self.reference(rounds))

    def test_keep(self):
        rounds = 60
        run = self.start_run(work(rounds), interval="0.15s", options=["--keep", "2"])
        out = self.out
        wait_for(lambda: self.versions() and max(self.versions()) >= 8, what="eight versions")
        os.kill(self.child_of(run), signal.SIGKILL)
        run.wait(timeout=30)
        # A pruning that finds somebody reading, as this test does, is put off.
        self.assertLessEqual(len(self.versions()), 4)
        self.assert_ends(icp("prune", self.image, "--keep", "2"), 0)
        self.assertEqual(len(self.versions()), 2)
        self.verified()
        self.assert_ends(self.restart(), 0)
        self.assertEqual(result_of(out.read_text()), self.reference(rounds))

    def test_prune_and_diff(self):
        run = self.start_run(work(10**6), interval="0.1s")
        wait_for(lambda: len(self.versions()) >= 4, what="four versions")
        os.kill(self.child_of(run), signal.SIGKILL)
        run.wait(timeout=30)
        numbers = self.versions()
        diff = json.loads(icp("diff", self.image, "--json").stdout)
        self.assertEqual((diff["from"], diff["to"]), tuple(numbers[-2:]))
        changed = sum(store["changed"] for store in diff["stores"])
        self.assertGreater(changed, 50)
        self.assertLess(changed, 1500)
        self.assertRegex(icp("diff", self.image, "--from", "1", "--to", "2").stdout, r"task_mm_\d+ \(process .*pages? changed")
        self.assert_ends(icp("prune", self.image, "--keep", "1"), 0)
        self.assertEqual(self.versions(), numbers[-1:])
        self.verified()
        self.assert_one_error(icp("diff", self.image), 2, "no two versions")
        self.assert_one_error(icp("compact", self.image, "--compression", "gzip"), 2, "unknown compression 'gzip'")

    def test_dedup(self):
        written = {}
        for options in [(), ("--dedup",)]:
            self.image = self.dir / f"image{len(options)}"
            run = self.start_run(["/usr/bin/python3", "-c", REWRITER], interval="0.3s", options=options)
            wait_for(lambda: len(self.versions()) >= 4, seconds=60, what="four versions")
            os.kill(self.child_of(run), signal.SIGKILL)
            run.wait(timeout=30)
            listed = json.loads(icp("list", "--json", self.image).stdout)["versions"]
            written[len(options)] = [v.get("stats", v.get("manifest", {}).get("stats"))["pages_written"] for v in listed][2:4]
            self.verified()
        self.assertGreater(min(written[0]), 2000)
        self.assertLess(max(written[1]), 700)


@unittest.skipUnless(ROOT, "a lazy restart takes root, or vm.unprivileged_userfaultfd")
class Lazy(Runs):
    def stopped_run(self, command):
        """One version of a program, which is then killed."""
        run = self.start_run(command, interval="1h")
        out = self.out
        wait_for(lambda: re.search(r"ready|round [3-9]", out.read_text()), what="the program")
        run.send_signal(signal.SIGUSR1)
        wait_for(self.versions, what="a version")
        time.sleep(0.2)
        os.kill(self.child_of(run), signal.SIGKILL)
        run.wait(timeout=30)
        return out

    def test_the_result_is_the_same(self):
        out = self.stopped_run(work(40, mib=64))
        reference = subprocess.run([*map(str, work(40, 0, mib=64))], stdout=subprocess.PIPE, text=True, check=True)
        self.assert_ends(self.restart("--lazy"), 0)
        self.assertEqual(result_of(out.read_text()), result_of(reference.stdout))

    def test_discards_moves_and_forks_meanwhile(self):
        out = self.stopped_run(["/usr/bin/python3", "-c", MOVER, "0"])
        pid_file = self.dir / "pid"
        again = self.start(program(), "restart", "--dir", self.image, "--lazy", "--pid-file", pid_file)
        wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), what="the restart")
        os.kill(int(pid_file.read_text()), signal.SIGUSR1)
        self.assertEqual(again.wait(timeout=60), 0)
        self.assertEqual(result_of(out.read_text()), "RESULT parent 0 child 0")

    def test_a_version_waits_for_the_memory(self):
        out = self.stopped_run(work(200, mib=64))
        reference = subprocess.run([*map(str, work(200, 0, mib=64))], stdout=subprocess.PIPE, text=True, check=True)
        pid_file = self.dir / "pid"
        again = self.start(program(), "restart", "--dir", self.image, "--lazy", "--pid-file", pid_file, "--interval", "1h")
        wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), what="the restart")
        again.send_signal(signal.SIGUSR1)
        wait_for(lambda: len(self.versions()) == 2, what="a version of the restarted program")
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        again.wait(timeout=30)
        self.verified()
        self.assert_ends(self.restart("--version", "2"), 0)
        self.assertEqual(result_of(out.read_text()), result_of(reference.stdout))

    def test_processes_end_with_a_killed_agent(self):
        self.stopped_run(work(10**6, mib=256, percent=50))
        pid_file = self.dir / "pid"
        again = self.start(program(), "restart", "--dir", self.image, "--lazy", "--pid-file", pid_file)
        wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), what="the restart")
        pid = int(pid_file.read_text())
        again.kill()
        again.wait()
        wait_for(lambda: not os.path.exists(f"/proc/{pid}") or "Z" in pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3],
                 what="the end of the restored process")

    def test_a_damaged_page_ends_the_processes(self):
        self.stopped_run(work(10**6, mib=64))
        page_file = next(self.image.glob("v000001/*/task_mm_*.bin"))
        with page_file.open("r+b") as file:
            file.seek(4096 * 9000)
            file.write(b"damage")
        done = self.restart("--lazy")
        self.assert_ends(done, 125, "has another checksum")


if __name__ == "__main__":
    main(__doc__)
