#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command icp from outside: its command line, run, watch, checkpoint and check.

    icp_cli_test.py ICP [unittest arguments]

Needs root, but for the tests of wrong command lines. Ends only processes that it started.
"""
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time
import unittest

from icp_harness import ABLE, Case, ROOT, build, counter, icp, main, program, wait_for


class CommandLine(Case):
    def test_errors_are_json_where_that_was_asked_for(self):
        done = icp("list", "--json", self.dir / "nowhere")
        self.assertEqual(json.loads(done.stdout)["error"]["kind"], "system")
        self.assertIn("nowhere", done.stderr)
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        done = icp("--json-fd", writer, "verify", "--json", self.dir, pass_fds=[writer])
        os.close(writer)
        answer = json.loads(os.read(reader, 1 << 16))
        self.assertEqual(answer["error"]["kind"], "gone")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (1, "", ""))
        self.assertIn("--json-fd goes with", icp("--json-fd", 1, "list", self.dir).stderr)
        self.assertIn("not open for writing", icp("--json-fd", 77, "list", "--json", self.dir).stderr)
        self.assertIn("--json goes with", icp("restart", "--json", "--dir", self.dir).stderr)

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
                (["prune", "d", "--version"], "--version"),
                (["check", "--pid", "-1"], "--pid"),
                (["checkpoint", "--pid", "1"], "--dir is required"),
                (["restart"], "a JOB of Slurm, or --dir with an image, is required"),
                (["restart", "12", "--dir", "d"], "excludes"),
                (["restart", "12", "--detach"], "excludes"),
                (["restart", "--dir", "d", "--json"], "JOB"),
                (["create"], "JOB is required"),
                (["create", "x"], '"x" is neither JOB nor JOB.STEP'),
                (["status", "0"], '"0" is neither JOB nor JOB.STEP'),
                (["ipc", "12.extern"], "neither JOB nor JOB.STEP"),
                (["create", "1", "--max-wait", "soon"], '--max-wait: "soon" is not a time'),
                (["status", "1", "--versions", "0"], '"0" is not a number'),
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
        for command in ["run", "watch", "checkpoint", "restart", "check", "list", "show", "verify", "diff", "compact",
                        "prune", "create", "vacate",
                        "requeue", "enable", "disable", "jobs", "status", "ipc", "doctor", "setup"]:
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

    def test_a_report_of_nothing_leaves_no_page(self):
        page = self.dir / "page.html"
        self.assert_one_error(icp("report", self.dir / "none", "-o", page), 1, "none")
        self.assertFalse(page.exists())
        page.write_text("the one before")
        self.assert_one_error(icp("report", self.dir / "none", "-o", page), 1, "none")
        self.assertEqual(page.read_text(), "the one before")

    def test_full_disk(self):
        with open("/dev/full", "wb") as full:
            result = subprocess.run([program(), "--help"], stdout=full, stderr=subprocess.PIPE, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"No space left", result.stderr)


@unittest.skipUnless(ABLE, "needs root or user namespaces")
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

    @unittest.skipUnless(ROOT, "needs root to become another user")
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
        process = self.start(program(), *options, "run", "--dir", self.image, "--interval", interval, "--", *command)
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
        table = icp("list", self.image, "--version", 2).stdout.splitlines()
        self.assertEqual([line.split()[0] for line in table[1:]], ["2"])
        self.assert_one_error(icp("list", self.image, "--version", 99), 1, "there is no version 99")

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
        script = "import time\nopened = open('/proc/self/mem', 'r+b', 0); time.sleep(1.5)"
        process = self.start_run("/usr/bin/python3", "-c", script, interval="0.2s", options=())
        self.assertEqual(process.wait(30), 0)
        self.assertRegex(self.err.read_text(), r"\Aicp: no version taken: [^\n]*descriptor \d+[^\n]*\n\Z")
        self.assertEqual(self.versions(), [])

    def test_two_programs_do_not_share_a_directory(self):
        first = self.start_run(*counter(400), interval="0.2s", options=())
        said = self.err
        wait_for(self.versions, what="a version")
        second = self.start_run(*counter(20, 3), interval="10m", options=())
        self.assertEqual(second.wait(30), 3)
        self.assertRegex(self.err.read_text(), rf"\Aicp: [^\n]*{self.image} is in use: icp \(process {first.pid} on [^\n]+\) takes"
                         r" versions into it[^\n]*another directory\n\Z")
        self.assertEqual(said.read_text(), "")
        first.terminate()
        self.assertEqual(first.wait(10), 42)
        # It is free again, also for a restart that goes on.
        third = self.start(program(), "restart", "--dir", self.image, "--interval", "0.2s")
        before = self.versions()
        wait_for(lambda: len(self.versions()) > len(before), what="a version of the restored tree")
        third.terminate()
        self.assertEqual(third.wait(10), 42)

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


@unittest.skipUnless(ABLE, "needs root or user namespaces")
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
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            server.accept()[0].detach()  # open as long as the test
            process = self.start("sleep", "100", pass_fds=[client.fileno()])
            result = icp("check", "--pid", process.pid)
            self.assert_ends(result, 1)
            self.assertRegex(result.stdout, rf"process {process.pid} \(sleep\), descriptor {client.fileno()}: .*TCP")
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

    def test_a_daemon_that_left_the_tree_is_named(self):
        script = ("( setsid sh -c 'echo $$ > daemon; exec sleep 60' </dev/null >/dev/null 2>&1 & ); sleep 60; true")
        process = self.start("sh", "-c", script, cwd=self.dir, env={**os.environ, "ICP_OF_THIS_TEST": str(os.getpid())})
        daemon = int(wait_for(lambda: (self.dir / "daemon").exists() and (self.dir / "daemon").read_text(), what="a daemon"))
        self.own(daemon)
        result = icp("checkpoint", "--pid", process.pid, "--dir", self.image)
        self.assert_ends(result, 0, rf"icp: not in the version[^\n]*process {process.pid}[^\n]*: {daemon} \((sleep|sh)\);")
        other = self.start_counter(1000)
        self.assertNotIn("not in the version", icp("checkpoint", "--pid", other.pid, "--dir", self.dir / "two").stderr)

    def test_icp_itself_has_left_no_tree(self):
        # As after a restart: the program's parent, icp restart, is a child of what starts icp.
        self.start("sh", "-c", "sleep 60 & echo $! > sleeper; wait; true", cwd=self.dir)
        sleeper = int(wait_for(lambda: (self.dir / "sleeper").exists() and (self.dir / "sleeper").read_text(), what="a sleeper"))
        self.own(sleeper)
        result = icp("checkpoint", "--pid", sleeper, "--dir", self.image)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("not in the version", result.stderr)

    def test_checkpoint_and_kill(self):
        process = self.start_counter(1000)
        self.assert_ends(icp("checkpoint", "--kill", "--dir", self.image, "--pid", process.pid), 0)
        self.assertEqual(process.wait(10), -signal.SIGKILL)
        self.assertEqual(self.versions(), [1])

    def test_precopy_or_none(self):
        mib, rounds = 32, 12
        command = [str(build() / "tests" / "programs" / "malloc_and_write"), "--mib", str(mib), "--rounds", str(rounds), "--seed", "5",
                   "--round-ms"]
        plain = subprocess.run([*command, "0"], stdout=subprocess.PIPE, text=True, check=True).stdout
        process = self.start(*command, "500")
        output = self.out
        wait_for(lambda: "round 1" in output.read_text(), what="the program's first round")

        def copied_at_the_stop(*options):
            result = icp("-vv", "checkpoint", "--dir", self.image, "--pid", process.pid, *options)
            self.assert_ends(result, 0)
            return int(re.search(r"mappings, (\d+) bytes copied at the stop", result.stderr)[1])

        self.assertLess(copied_at_the_stop(), 8 << 20)
        self.assertGreaterEqual(copied_at_the_stop("--no-precopy", "--kill"), mib << 20)
        self.assertEqual(process.wait(10), -signal.SIGKILL)
        restarted = self.start(program(), "restart", "--dir", self.image)
        self.assertEqual(restarted.wait(60), 0)
        self.assertEqual(output.read_text().splitlines()[-1], plain.splitlines()[-1])

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
        watcher = self.start(program(), *watch)
        wait_for(lambda: len(self.versions()) > 4, what="a fifth version")
        watcher.terminate()
        self.assertEqual(watcher.wait(10), 0)
        self.assertIsNone(process.poll())
        before = len(self.versions())
        watcher = self.start(program(), *watch)
        wait_for(lambda: len(self.versions()) > before, what="a further version")
        process.terminate()
        self.assertEqual(process.wait(10), 42)
        self.assertEqual(watcher.wait(10), 0)
        self.assertEqual(self.err.read_text(), "")


if __name__ == "__main__":
    main(__doc__)
