#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command icp from outside: what it prints, how it ends, what it leaves behind.

    icp_cli_test.py ICP [unittest arguments]

Needs root, but for the tests of wrong command lines. Ends only processes that it started.
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
import socket
import subprocess
import sys
import tempfile
import time
import unittest

ICP = ""
ROOT = os.geteuid() == 0

# Prints its pid, then LINES numbers, one every 20 ms, then exits with CODE. SIGTERM makes it exit with 42.
COUNTER = r"""
use strict;
my ($lines, $code) = @ARGV;
$| = 1;
$SIG{TERM} = sub { print "terminated\n"; exit 42 };
print "pid $$\n";
for my $i (1 .. $lines) {
    print "$i\n";
    select(undef, undef, undef, 0.02);
}
exit $code;
"""


def counter(lines, code=0):
    return ["/usr/bin/perl", "-e", COUNTER, str(lines), str(code)]


def icp(*arguments, timeout=60, **options):
    """Runs icp to its end."""
    return subprocess.run([ICP, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=timeout, check=False, **options)


def wait_for(condition, seconds=20, what="a condition"):
    """The first true value of condition()."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come about within {seconds} s")


class Case(unittest.TestCase):
    """A directory of its own, and processes that do not outlive the test."""

    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="icp_cli_"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.image = self.dir / "image"
        self.handles = []
        self.addCleanup(self.end_all)

    def end_all(self):
        for handle in self.handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)

    def own(self, pid):
        """Has `pid` killed at the end, through a handle that no later process can stand for."""
        with contextlib.suppress(ProcessLookupError):
            self.handles.append(os.pidfd_open(pid))

    def start(self, *command, **options):
        """A process with its output in files: self.out, self.err."""
        number = len(self.handles)
        self.out = self.dir / f"out{number}"
        self.err = self.dir / f"err{number}"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            process = subprocess.Popen([*map(str, command)], stdin=subprocess.DEVNULL,
                                       stdout=options.pop("stdout", out),
                                       stderr=options.pop("stderr", err), **options)
        self.own(process.pid)

        def reap():
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        self.addCleanup(reap)
        return process

    def start_counter(self, lines, code=0):
        """A counter that runs by itself, writing to /dev/null, well under way."""
        process = self.start(*counter(lines, code), stdout=subprocess.DEVNULL)
        wait_for(lambda: pathlib.Path(f"/proc/{process.pid}/comm").read_text() == "perl\n", what="exec")
        time.sleep(0.2)
        return process

    def versions(self):
        """Numbers of the versions in the image."""
        result = icp("list", "--json", self.image)
        return [v["version"] for v in json.loads(result.stdout)["versions"]] if result.returncode == 0 else []

    def assert_ends(self, result, code, text=""):
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        if text:
            self.assertRegex(result.stderr, text)

    def assert_one_error(self, result, code, text):
        """One line on stderr, of the usual form, and no success in between."""
        self.assert_ends(result, code, text)
        self.assertRegex(result.stderr, r"\Aicp: [^\n]+\n\Z")


class CommandLine(Case):
    def test_wrong_command_lines(self):
        run = ["run", "--dir", self.image, "--interval"]
        for arguments, text in [
                ([], "--help"),
                (["bogus"], "no command bogus"),
                (["--bogus"], "no option --bogus"),
                (["list"], "DIR is required"),
                (["show", "d", "--version", "0"], '"0" is not a number'),
                (["show", "d", "--version", "x"], '"x" is not a number'),
                (["show", "d", "--version", "4294967297"], "is not a number"),
                (["check"], "--pid is required"),
                (["check", "--pid", "-1"], "--pid"),
                (["checkpoint", "--pid", "1"], "--dir is required"),
                (["restart"], "--dir is required"),
                (["restart", "--dir", "d", "--detach", "--interval", "5"], "excludes"),
                ([*run, "0", "--", "true"], "minutes:seconds"),
                ([*run, "-5", "--", "true"], "--interval"),
                ([*run, "soon", "--", "true"], '"soon" is not a time'),
                ([*run, "99999d", "--", "true"], "too long"),
                ([*run, "5"], "no program to run"),
                ([*run, "5", "--"], "no program to run"),
                ([*run, "5", "true"], "true"),
                (["watch", "--dir", "d", "--pid", "1", "--interval", "1:2:3:4"], "not a time")]:
            with self.subTest(arguments=arguments):
                self.assert_one_error(icp(*arguments), 2, text)
        self.assertFalse(self.image.exists())

    def test_help_and_version(self):
        for command in ["run", "watch", "checkpoint", "restart", "check", "list", "show", "verify"]:
            result = icp(command, "--help")
            self.assert_ends(result, 0)
            self.assertIn("--help", result.stdout)
        self.assertRegex(icp("--version").stdout, r"^slurm-icp \d")

    def test_no_image(self):
        self.assert_one_error(icp("list", self.dir / "none"), 1, "No such file")
        self.assert_one_error(icp("list", self.dir), 1, "no version in")
        (self.dir / "a/v000001").mkdir(parents=True)
        (self.dir / "b/v000001").mkdir(parents=True)
        for command in ["list", "show", "verify"]:
            self.assert_one_error(icp(command, self.dir), 2, f"name one of them: {self.dir}/a {self.dir}/b")

    @unittest.skipUnless(ROOT, "needs root to become nobody")
    def test_root_is_needed(self):
        for arguments, code in [(["run", "--dir", "d", "--interval", "5", "--", "true"], 125),
                                (["watch", "--dir", "d", "--interval", "5", "--pid", "1"], 4),
                                (["checkpoint", "--dir", "d", "--pid", "1"], 4),
                                (["check", "--pid", "1"], 4),
                                (["restart", "--dir", "d"], 125),
                                (["restart", "--dir", "d", "--detach"], 4)]:
            with self.subTest(arguments=arguments):
                self.assert_one_error(icp(*arguments, user=65534), code, "needs root")

    def test_full_disk(self):
        with open("/dev/full", "wb") as full:
            result = subprocess.run([ICP, "--help"], stdout=full, stderr=subprocess.PIPE, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"No space left", result.stderr)


@unittest.skipUnless(ROOT, "needs root")
class Run(Case):
    def run_icp(self, *command, interval="1h", options=()):
        return icp("run", "--dir", self.image, "--interval", interval, *options, "--", *command)

    def test_exit_codes(self):
        self.assert_ends(self.run_icp("true"), 0)
        self.assert_ends(self.run_icp("sh", "-c", "exit 7"), 7)
        self.assert_ends(self.run_icp("sh", "-c", "kill -9 $$"), -signal.SIGKILL)
        self.assert_ends(self.run_icp("sh", "-c", "kill -USR2 $$"), -signal.SIGUSR2)
        self.assert_one_error(self.run_icp("/nonexistent/program"), 127, "cannot execute /nonexistent/program")
        self.assert_one_error(self.run_icp("/etc/passwd"), 126, "Permission denied")

    def test_arguments_and_streams_are_the_programs(self):
        result = self.run_icp("sh", "-c", 'echo "$@"; echo error >&2', "sh", "--dir", "--", "-v")
        self.assertEqual((result.stdout, result.stderr), ("--dir -- -v\n", "error\n"))

    def test_signals_of_the_program_are_as_before(self):
        mine = re.search(r"SigBlk:.*\nSigIgn:.*", pathlib.Path("/proc/self/status").read_text())[0]
        result = self.run_icp("grep", "-E", "SigBlk|SigIgn", "/proc/self/status")
        # Python ignores SIGPIPE (bit 12) and restores it in its children.
        self.assertEqual(result.stdout.split()[1], mine.split()[1])
        self.assertEqual(int(result.stdout.split()[3], 16), 0)

    def test_user(self):
        self.image.mkdir(mode=0o700)
        self.dir.chmod(0o755)
        self.assert_one_error(self.run_icp("id", "-u", options=["--user", "nobody"]), 125, re.escape(str(self.image)))
        self.image.rmdir()
        self.assert_one_error(self.run_icp("id", options=["--user", "no-such-user"]), 2, "no user no-such-user")
        shutil.chown(self.dir, "nobody")
        result = self.run_icp("id", "-u", options=["--user", "nobody"])
        self.assert_ends(result, 0)
        self.assertEqual(result.stdout, "65534\n")
        self.assertEqual(self.image.stat().st_uid, 65534)
        self.assertEqual(self.image.stat().st_mode & 0o777, 0o700)

    def test_wrong_directories(self):
        (self.dir / "file").touch()
        self.image = self.dir / "file"
        self.assert_one_error(self.run_icp("touch", self.dir / "ran"), 125, "file")
        self.image = self.dir / "open"
        self.image.mkdir()
        self.image.chmod(0o777)
        self.assert_one_error(self.run_icp("touch", self.dir / "ran"), 125, "open")
        self.image = self.dir / "a/b/c"
        self.assert_one_error(self.run_icp("touch", self.dir / "ran"), 125, "a/b does not exist")
        self.assertFalse((self.dir / "ran").exists())

    def start_run(self, *command, interval="1h", options=("-v",)):
        process = self.start(ICP, *options, "run", "--dir", self.image, "--interval", interval, "--", *command)
        if "-v" in options:
            pid = wait_for(lambda: re.search(r"process (\d+)", self.err.read_text()), what="the start")
            self.own(int(pid[1]))
        return process

    def test_signals_are_passed_on(self):
        process = self.start_run(*counter(1000))
        wait_for(lambda: "\n3\n" in self.out.read_text(), what="the third line")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(10), 42)
        process = self.start_run(*counter(1000))
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(10), -signal.SIGINT)

    def test_versions_at_the_interval(self):
        process = self.start_run(*counter(75, 5), interval="0.3s")
        self.assertEqual(process.wait(30), 5)
        versions = self.versions()
        self.assertGreaterEqual(len(versions), 2, self.err.read_text())
        self.assertEqual(versions, list(range(1, len(versions) + 1)))
        self.assertRegex(self.err.read_text(), r"icp: version 1: [\d,]+ pages?, [\d.]+ \w+, stopped [\d.]+ \w+, [\d.]+ m?s\n")
        self.assertEqual(self.out.read_text().split()[2:], [str(i) for i in range(1, 76)])
        listed = json.loads(icp("list", "--json", self.image).stdout)["versions"]
        self.assertEqual([v["stats"]["full"] for v in listed][:2], [True, False], listed)

    def test_usr1_takes_a_version(self):
        process = self.start_run(*counter(1000))
        for number in [1, 2]:
            process.send_signal(signal.SIGUSR1)
            wait_for(lambda n=number: self.versions() == list(range(1, n + 1)), what=f"version {number}")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(10), 42)

    def test_silent_without_verbose(self):
        process = self.start_run(*counter(40), interval="0.2s", options=())
        self.assertEqual(process.wait(30), 0)
        self.assertEqual(self.err.read_text(), "")
        self.assertNotEqual(self.versions(), [])

    def test_failure_is_said_once(self):
        script = "import socket, time\ns = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); time.sleep(1.5)"
        process = self.start_run("/usr/bin/python3", "-c", script, interval="0.2s", options=())
        self.assertEqual(process.wait(30), 0)
        self.assertRegex(self.err.read_text(), r"\Aicp: no version taken: [^\n]*descriptor \d+[^\n]*\n\Z")
        self.assertEqual(self.versions(), [])

    def test_exit_code_survives_death_at_any_moment(self):
        for i in range(8):
            process = self.start_run("sh", "-c", f"sleep 0.{3 + i % 4}{i}; exit {i}", interval="0.02s", options=())
            self.assertEqual(process.wait(30), i, self.err.read_text())
            shutil.rmtree(self.image)

    def test_processes_that_end_in_the_middle_of_a_version(self):
        script = "for i in $(seq 1 100); do sleep 0.02; done; exit 7"
        process = self.start_run("sh", "-c", script, interval="0.02s", options=())
        self.assertEqual(process.wait(60), 7)
        self.assertEqual(self.err.read_text(), "")
        self.assert_ends(icp("verify", self.image), 0)


@unittest.skipUnless(ROOT, "needs root")
class Tree(Case):
    """check, checkpoint and watch."""

    def test_no_such_process(self):
        gone = subprocess.Popen(["true"])
        gone.wait()
        for command in [["check"], ["checkpoint", "--dir", self.image],
                        ["watch", "--dir", self.image, "--interval", "1s"]]:
            self.assert_one_error(icp(*command, "--pid", gone.pid), 1, f"no process {gone.pid}")
        self.assertFalse(self.image.exists())

    def test_own_tree(self):
        self.assert_one_error(icp("checkpoint", "--dir", self.image, "--pid", os.getpid()), 2, "in the tree of process")

    def test_check(self):
        process = self.start_counter(1000)
        result = icp("check", "--pid", process.pid)
        self.assert_ends(result, 0)
        self.assertIn("nothing stops", result.stdout)
        self.assertEqual(json.loads(icp("check", "--json", "--pid", process.pid).stdout), {"findings": []})

    def test_check_finds_a_socket(self):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            process = self.start("sleep", "100", pass_fds=[server.fileno()])
            result = icp("check", "--pid", process.pid)
            self.assert_ends(result, 1)
            self.assertRegex(result.stdout, rf"process {process.pid} \(sleep\), descriptor {server.fileno()}: .*TCP")
            result = icp("check", "--json", "--pid", process.pid)
            self.assert_ends(result, 1)
            finding, = json.loads(result.stdout)["findings"]
            self.assertEqual((finding["pid"], finding["command"]), (process.pid, "sleep"))
            self.assert_one_error(icp("checkpoint", "--dir", self.image, "--pid", process.pid), 1, "TCP")
            self.assertEqual(self.versions(), [])
            self.assertIsNone(process.poll())

    def test_checkpoint(self):
        process = self.start_counter(1000)
        result = icp("checkpoint", "--dir", self.image, "--pid", process.pid)
        self.assert_ends(result, 0)
        self.assertEqual(result.stdout + result.stderr, "")
        result = icp("checkpoint", "--json", "--dir", self.image, "--pid", process.pid)
        self.assertEqual(json.loads(result.stdout)["version"], 2)
        self.assertGreater(json.loads(result.stdout)["stats"]["pages_written"], 10)
        self.assertIsNone(process.poll())
        self.assertEqual(self.versions(), [1, 2])
        process.terminate()
        self.assertEqual(process.wait(10), 42)

    def test_checkpoint_and_kill(self):
        process = self.start_counter(1000)
        self.assert_ends(icp("checkpoint", "--kill", "--dir", self.image, "--pid", process.pid), 0)
        self.assertEqual(process.wait(10), -signal.SIGKILL)
        self.assertEqual(self.versions(), [1])

    def test_failed_checkpoint_does_not_kill(self):
        process = self.start_counter(1000)
        self.image.mkdir()
        self.image.chmod(0o777)
        self.assert_one_error(icp("checkpoint", "--kill", "--dir", self.image, "--pid", process.pid), 4, "image")
        self.assertIsNone(process.poll())

    def test_watch(self):
        process = self.start_counter(1000)
        watch = ["watch", "--dir", self.image, "--interval", "0.1s", "--pid", process.pid]
        self.assert_ends(icp(*watch, "--count", 3), 0)
        self.assertEqual(self.versions(), [1, 2, 3])
        watcher = self.start(ICP, *watch)
        wait_for(lambda: len(self.versions()) > 4, what="a fifth version")
        watcher.terminate()
        self.assertEqual(watcher.wait(10), 0)
        self.assertIsNone(process.poll())
        before = len(self.versions())
        watcher = self.start(ICP, *watch)
        wait_for(lambda: len(self.versions()) > before, what="a further version")
        process.terminate()
        self.assertEqual(process.wait(10), 42)
        self.assertEqual(watcher.wait(10), 0)
        self.assertEqual(self.err.read_text(), "")


@unittest.skipUnless(ROOT, "needs root")
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

    def test_run_killed_and_restarted(self):
        process = self.start(ICP, "-v", "run", "--dir", self.image, "--interval", "0.2s", "--", *counter(100, 3))
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
        restart = self.start(ICP, "restart", "--dir", self.image)
        wait_for(lambda: self.out.read_text().count("\n") > 3, what="output")
        restart.send_signal(signal.SIGTERM)
        self.assertEqual(restart.wait(10), 42)
        self.assertTrue(self.out.read_text().endswith("terminated\n"))
        restart = self.start(ICP, "restart", "--dir", self.image)
        wait_for(lambda: self.out.read_text().count("\n") > 3, what="output")
        restart.send_signal(signal.SIGINT)
        self.assertEqual(restart.wait(10), -signal.SIGINT)

    def test_nothing_is_left_when_icp_is_killed(self):
        self.checkpointed(1000)
        pid_file = self.dir / "pid"
        restart = self.start(ICP, "restart", "--dir", self.image, "--pid-file", pid_file)
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
            result = subprocess.run([ICP, "restart", "--dir", self.image, "--detach", "--pid-file", pid_file],
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
        self.assert_one_error(icp("restart", "--dir", self.image, "--grown", "x"), 2, "none of truncate")


@unittest.skipUnless(ROOT, "needs root")
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
            os.execv(ICP, [ICP, *map(str, arguments)])
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


@unittest.skipUnless(ROOT, "needs root")
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

    def test_others_may_not_look(self):
        self.dir.chmod(0o755)
        for command in ["list", "show", "verify"]:
            self.assert_one_error(icp(command, self.image, user=65534), 4, "Permission denied|belongs to")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    ICP = os.path.realpath(sys.argv.pop(1))
    unittest.main(verbosity=2)
