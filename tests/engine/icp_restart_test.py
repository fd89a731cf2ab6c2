#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command icp from outside: restart, list, show and verify, and how it behaves on a terminal.

    icp_restart_test.py ICP [unittest arguments]

Needs root. Ends only processes that it started.
"""
import contextlib
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import time
import unittest

from icp_harness import ABLE, Case, ROOT, counter, icp, main, program, wait_for


@unittest.skipUnless(ABLE, "needs root or user namespaces")
class Restart(Case):
    def checkpointed(self, lines, code=0, moments=1):
        """A counter killed with its last version; what it had printed."""
        process = self.start(*counter(lines, code), stdout=subprocess.PIPE, text=True)
        printed = [process.stdout.readline().strip() for _ in range(6)]
        for moment in range(moments):
            kill = ["--kill"] if moment + 1 == moments else []
            self.assert_ends(icp("checkpoint", *kill, "--dir", self.image, "--pid", process.pid), 0)
        printed += process.stdout.read().split("\n")[:-1]
        self.assertEqual(process.wait(10), -signal.SIGKILL)
        return printed

    def test_goes_on_where_it_was(self):
        printed = self.checkpointed(60, 9)
        result = icp("restart", "--dir", self.image)
        self.assert_ends(result, 9)
        self.assertEqual(result.stderr, "")
        self.assertEqual(printed[1:] + result.stdout.split(), [str(i) for i in range(1, 61)])
        self.assertEqual(icp("restart", "--dir", self.image).stdout, result.stdout)

    @unittest.skipUnless(ROOT, "needs root")
    def test_changed_root_directory(self):
        """chroot(2): /usr has all that a shell needs. As another user it is refused before anything is stopped."""
        script = 'for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done; [ -e /usr ] && exit 1; cd /; pwd; exit 5'
        process = self.start("chroot", "/usr", "/bin/sh", "-c", script, stdout=subprocess.DEVNULL)
        wait_for(lambda: os.readlink(f"/proc/{process.pid}/root") == "/usr", what="chroot")
        self.assert_ends(icp("checkpoint", "--kill", "--dir", self.image, "--pid", process.pid), 0)
        process.wait(10)
        result = icp("restart", "--dir", self.image)
        self.assert_ends(result, 5)
        other = self.start("chroot", "--userspec=65534:65534", "/usr", "/bin/sleep", "100")
        wait_for(lambda: pathlib.Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n", what="chroot")
        result = icp("check", "--pid", other.pid)
        self.assertEqual(result.returncode, 1)
        self.assertIn("changed root directory /usr", result.stdout)

    def test_run_killed_and_restarted(self):
        process = self.start(program(), "-v", "run", "--dir", self.image, "--interval", "0.2s", "--", *counter(100, 3))
        pid = int(wait_for(lambda: re.search(r"process (\d+)", self.err.read_text()), what="the start")[1])
        self.own(pid)
        wait_for(lambda: len(self.versions()) > 1, what="two versions")
        os.kill(pid, signal.SIGKILL)
        self.assertEqual(process.wait(10), -signal.SIGKILL)
        result = icp("restart", "--dir", self.image)
        self.assert_ends(result, 3)
        # The file that it wrote to was cut back to its length at the checkpoint, and written on.
        self.assertEqual(self.out.read_text().split()[2:], [str(i) for i in range(1, 101)])
        self.assertEqual(result.stdout, "")

    def test_an_older_version(self):
        self.checkpointed(40, moments=3)
        outputs = [icp("restart", "--dir", self.image, "--version", n).stdout for n in [1, 2, 3]]
        self.assertTrue(outputs[0].endswith(outputs[1]) and outputs[1].endswith(outputs[2]), outputs)
        self.assert_one_error(icp("restart", "--dir", self.image, "--version", 4), 125, "version 4|v000004")

    def test_verbose(self):
        self.checkpointed(10)
        result = icp("-v", "restart", "--dir", self.image)
        self.assertRegex(result.stderr, r"icp: restarted version 1 of \d{4}-.*, 1 process, [\d,]+ pages, in .*s\n")

    def test_signals(self):
        self.checkpointed(1000)
        restart = self.start(program(), "restart", "--dir", self.image)
        wait_for(lambda: self.out.read_text().count("\n") > 3, what="output")
        restart.send_signal(signal.SIGTERM)
        self.assertEqual(restart.wait(10), 42)
        self.assertTrue(self.out.read_text().endswith("terminated\n"))
        restart = self.start(program(), "restart", "--dir", self.image)
        wait_for(lambda: self.out.read_text().count("\n") > 3, what="output")
        restart.send_signal(signal.SIGINT)
        self.assertEqual(restart.wait(10), -signal.SIGINT)

    def test_nothing_is_left_when_icp_is_killed(self):
        self.checkpointed(1000)
        pid_file = self.dir / "pid"
        restart = self.start(program(), "restart", "--dir", self.image, "--pid-file", pid_file)
        pid = int(wait_for(lambda: pid_file.exists() and pid_file.read_text(), what="the pid file"))
        self.own(pid)
        restart.kill()
        restart.wait(10)
        wait_for(lambda: not pathlib.Path(f"/proc/{pid}").exists(), what="the end of the tree")

    def test_detach(self):
        self.checkpointed(100)
        pid_file = self.dir / "pid"
        output = self.dir / "output"
        with output.open("wb") as out:
            result = subprocess.run([program(), "restart", "--dir", self.image, "--detach", "--pid-file", pid_file],
                                    stdin=subprocess.DEVNULL, stdout=out, timeout=30, check=False)
        self.assertEqual(result.returncode, 0)
        pid = int(pid_file.read_text())
        self.own(pid)
        self.assertEqual(pathlib.Path(f"/proc/{pid}/comm").read_text(), "perl\n")
        wait_for(lambda: not pathlib.Path(f"/proc/{pid}").exists(), what="its end")
        self.assertEqual(output.read_text().split()[-1], "100")

    def test_detach_prints_the_pid(self):
        process = self.start_counter(1000)
        self.assert_ends(icp("checkpoint", "--kill", "--dir", self.image, "--pid", process.pid), 0)
        result = icp("restart", "--dir", self.image, "--detach")
        self.assert_ends(result, 0)
        pid = int(result.stdout)
        self.own(pid)
        self.assert_ends(icp("checkpoint", "--kill", "--dir", self.image, "--pid", pid), 0)
        self.assertEqual(self.versions(), [1, 2])

    def test_bad_pid_file(self):
        self.checkpointed(1000)
        self.assert_one_error(icp("restart", "--dir", self.image, "--detach", "--pid-file", "/nonexistent/pid"), 1,
                              "pid file /nonexistent/pid")

    def test_goes_on_taking_versions(self):
        self.checkpointed(60, 4)
        self.assert_ends(icp("restart", "--dir", self.image, "--interval", "0.2s"), 4)
        listed = json.loads(icp("list", "--json", self.image).stdout)["versions"]
        self.assertGreater(len(listed), 2)
        self.assertFalse(listed[1]["stats"]["full"], listed[1])
        self.assertEqual(listed[1]["parent"], 1)
        self.assert_ends(icp("verify", self.image), 0)
        self.assert_ends(icp("restart", "--dir", self.image), 4)

    @unittest.skipUnless(ROOT, "needs root")
    def test_as_the_owner(self):
        self.dir.chmod(0o755)
        shutil.chown(self.dir, "nobody")
        process = self.start("sh", "-c", "sleep 1; id -u; grep CapEff /proc/self/status", user="nobody",
                             group="nogroup", extra_groups=[], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        time.sleep(0.3)
        self.assert_ends(icp("checkpoint", "--kill", "--dir", self.image, "--pid", process.pid), 0)
        self.assertEqual(self.image.stat().st_uid, 65534)
        result = icp("restart", "--dir", self.image)
        self.assert_ends(result, 0)
        self.assertEqual(result.stdout.split(), ["65534", "CapEff:", "0000000000000000"])

    def test_wrong_images(self):
        self.assert_one_error(icp("restart", "--dir", self.dir / "none"), 125, "No such file")
        self.image.mkdir(mode=0o700)
        self.assert_one_error(icp("restart", "--dir", self.image), 125, "no version")
        self.assert_one_error(icp("restart", "--dir", self.image, "--grown", "x"), 2, "none of restore")


@unittest.skipUnless(ABLE, "needs root or user namespaces")
class Terminal(Case):
    """On a terminal: one line a version, and the interrupt key reaches the program once."""

    INTERRUPTED = r"""
use strict;
my $count = 0;
$| = 1;
$SIG{INT} = sub { $count++ };
print "ready\n";
for (1 .. 100) { select(undef, undef, undef, 0.02); last if $count }
select(undef, undef, undef, 0.3);
print "interrupted $count\n";
"""

    def on_terminal(self, *arguments):
        """icp as the leader of a session with a terminal of its own; what it shows comes from self.shown()."""
        pid, self.terminal = pty.fork()
        if pid == 0:
            os.closerange(3, 4096)  # pipes of whoever runs this test would stop a checkpoint
            os.execv(program(), [program(), *map(str, arguments)])
        self.own(pid)
        self.addCleanup(os.close, self.terminal)
        self.text = ""
        return pid

    def shown(self, pattern):
        """Waits for text on the terminal."""
        def look():
            if select.select([self.terminal], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # the other end is closed
                    self.text += os.read(self.terminal, 4096).decode()
            return re.search(pattern, self.text)
        try:
            return wait_for(look, what=pattern)
        except AssertionError as error:
            raise AssertionError(f"{error}; shown:\n{self.text}") from None

    def ended(self, pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def test_interrupt_key(self):
        pid = self.on_terminal("run", "--dir", self.image, "--interval", "1h", "--", "perl", "-e", self.INTERRUPTED)
        program = int(self.shown(r"icp: process (\d+), a version every 1h")[1])
        self.shown("ready")
        os.kill(pid, signal.SIGUSR1)
        self.shown(r"icp: version 1: [\d,]+ pages, ")
        os.write(self.terminal, b"\x03")
        self.shown("interrupted 1\r\n")
        self.assertEqual(self.ended(pid), 0)
        self.assertFalse(pathlib.Path(f"/proc/{program}").exists())

        pid = self.on_terminal("restart", "--dir", self.image)
        self.shown("icp: restarted version 1 ")
        os.write(self.terminal, b"\x03")
        self.shown("interrupted 1\r\n")
        self.assertEqual(self.ended(pid), 0)


@unittest.skipUnless(ABLE, "needs root or user namespaces")
class Image(Case):
    """list, show and verify, and what they say about damage."""

    def setUp(self):
        super().setUp()
        process = self.start_counter(1000)
        self.pid = process.pid
        self.assert_ends(icp("watch", "--dir", self.image, "--interval", "0.05s", "--count", 2, "--pid", self.pid), 0)

    def files(self, version, suffix):
        return sorted(self.image.glob(f"v{version:06}/*/*{suffix}"))

    def flip(self, path, offset, every=1 << 40):
        data = bytearray(path.read_bytes())
        for at in range(offset, len(data), every):
            data[at] ^= 0x10
        path.write_bytes(data)

    def test_list(self):
        lines = icp("list", self.image).stdout.splitlines()
        self.assertEqual(lines[0].split(), "VERSION TAKEN PROCESSES PAGES BYTES STOPPED TOTAL KIND TRACKER".split())
        self.assertRegex(lines[1], r"^ +1  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d +1 +[\d,]+ +[\d.]+ \w+ .* full +\w")
        self.assertRegex(lines[2], r"^ +2  .* incremental +\w")
        value = json.loads(icp("list", "--json", self.image).stdout)
        self.assertEqual([v["parent"] for v in value["versions"]], [0, 1])
        self.assertLess(abs(value["versions"][0]["taken_unix_ns"] / 1e9 - time.time()), 600)

    def test_show(self):
        result = icp("show", self.image)
        self.assert_ends(result, 0)
        self.assertRegex(result.stdout, r"version +2, incremental after version 1")
        self.assertRegex(result.stdout, rf"process {self.pid} \(perl\)")
        self.assertRegex(result.stdout, r"fd 0  .*")
        self.assertRegex(icp("-v", "show", self.image).stdout, r"[0-9a-f]{12}-[0-9a-f]{12} r-xp private file /usr/bin/perl")
        value = json.loads(icp("show", "--json", "--version", 1, self.image).stdout)
        process, = value["processes"]
        self.assertEqual((value["version"], process["comm"], process["argv"][1]), (1, "perl", "-e"))
        self.assertEqual([d["fd"] for d in process["descriptors"]][:3], [0, 1, 2])
        self.assert_one_error(icp("show", self.image, "--version", 9), 3, "9")

    def test_verify(self):
        result = icp("verify", self.image)
        self.assert_ends(result, 0)
        self.assertEqual(result.stdout, "version 1: whole\nversion 2: whole\n")
        # A record may be one that a later round of the same version replaced: nothing refers to it any more.
        self.flip(self.files(2, ".bin")[0], 100, 4096)
        result = icp("verify", self.image)
        self.assert_ends(result, 1, r"\Aicp: version 2: [^\n]*task_mm_\d+\.2\.bin")
        self.assertEqual(result.stdout, "version 1: whole\nversion 2: damaged\n")
        self.assert_ends(icp("verify", self.image, "--version", 1), 0)
        self.flip(self.files(1, ".bin")[0], 100, 4096)
        self.assertEqual(icp("verify", self.image).stdout, "version 1: damaged\nversion 2: damaged\n")

    def test_damaged_manifest(self):
        self.flip(self.files(2, "manifest.icp")[0], 40)
        result = icp("list", self.image)
        self.assert_ends(result, 3)
        self.assertIn("version 2 cannot be read", result.stdout)
        self.assertEqual(len(json.loads(icp("list", "--json", self.image).stdout)["versions"]), 2)
        self.assert_one_error(icp("show", "--version", 2, self.image), 3, "manifest.icp")
        self.assert_one_error(icp("restart", "--dir", self.image, "--version", 2), 125, "manifest.icp")
        self.assert_one_error(icp("restart", "--dir", self.image, "--version", 2, "--detach"), 3, "manifest.icp")

    def test_damaged_state(self):
        self.flip(self.files(2, "state.icp")[0], 200)
        self.assert_one_error(icp("show", self.image), 3, "state.icp")
        self.assert_ends(icp("list", self.image), 0)

    @unittest.skipUnless(ROOT, "needs root")
    def test_others_may_not_look(self):
        self.dir.chmod(0o755)
        for command in ["list", "show", "verify"]:
            self.assert_one_error(icp(command, self.image, user=65534), 4, "Permission denied|belongs to")


if __name__ == "__main__":
    main(__doc__)
