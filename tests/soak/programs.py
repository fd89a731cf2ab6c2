#!/usr/bin/env -S python3 -B
# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that people run, killed at random moments under `icp run` and ended by `icp restart`: is their answer right?

    tests/soak/programs.py [--moments 20] [--seed N] [--rights user,none] [--at-once 2] [--keep DIR] [NAME ...]

The programs are those of program_list.py; one that is not installed is skipped and named. Each runs once uninterrupted. Then,
at each moment, in a directory of its own: `icp run` takes versions, everything is killed by SIGKILL at a random time of its
run, `icp restart` ends it, and the answer is compared. What comes of a moment is one of

    right      the same answer
    refused    no version could be taken, by name; the program ran on, and its answer is right
    not again  versions were taken, and the restart is refused, by name
    own error  the restarted program itself ends with an error, as when a file that was not open at the version is gone
    WRONG      another answer, and no error; or a program that was never killed comes to harm
    HANG       not ended within ten times the uninterrupted run and a minute

Rights: "user" is `icp run --user` of root (with the broker), "none" an ordinary user's (with a user namespace). Needs root, a
build (ICP_BUILD_DIR, default build/release) and the user icptest, or ICP_SOAK_USER.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import pwd
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import program_list

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("ICP_BUILD_DIR", ROOT / "build" / "release"))
USER_NAME = os.environ.get("ICP_SOAK_USER", "icptest")
USER = next((each for each in pwd.getpwall() if each.pw_name == USER_NAME), None)
BAD = ("not again", "own error", "WRONG", "HANG")
PRINT = threading.Lock()


def environment(**more):
    # OPENBLAS_*: some processors need them set, see numpy_threads.py.
    given = {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")}
    return given | {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/usr/lib/postgresql/15/bin", "HOME": "/var/tmp",
                    "LC_ALL": "C.UTF-8", "USER": USER.pw_name} | more


def as_user(*command):
    return ["setpriv", f"--reuid={USER.pw_uid}", f"--regid={USER.pw_gid}", "--clear-groups", "--no-new-privs", *command]


def shell(script, directory, **options):
    return subprocess.run(as_user("bash", "-c", script), cwd=directory, env=environment(), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False, **options)


def short(name):
    return re.sub(r"\W+", "-", name)


def read(path):
    try:
        return pathlib.Path(path).read_bytes()
    except OSError:  # it has ended
        return b""


def processes_of(tag, root):
    """All that descends from `root`, or has `tag` in its environment."""
    found, wanted = set(), [root]
    while wanted:
        pid = wanted.pop()
        if pid not in found and os.path.exists(f"/proc/{pid}"):
            found.add(pid)
            for children in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                wanted += map(int, read(children).split())
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        if tag.encode() in read(process / "environ"):
            found.add(int(process.name))
    return found


def kill_all(tag, root):
    """As the end of the machine would: all are stopped before the first dies."""
    stopped = set()
    for sent in (signal.SIGSTOP, signal.SIGKILL):
        while new := processes_of(tag, root) - stopped:
            for pid in new:
                try:
                    os.kill(pid, sent)
                except ProcessLookupError:
                    pass
            stopped |= new
        if sent == signal.SIGSTOP:
            stopped = set()


class Moment:
    """One run of a program, with its death."""

    def __init__(self, soak, program, rights, number, expected, length):
        self.program, self.rights, self.number, self.expected, self.length = program, rights, number, expected, length
        self.random = random.Random(f"{soak.given.seed} {program.name} {rights} {number}")
        self.icp = soak.icp
        self.top = soak.top / f"{short(program.name)}-{rights}-{number}"
        self.tag = f"ICP_SOAK={self.top.name}.{os.getpid()}"
        self.limit = 10 * length + 60
        self.prepared = soak.prepared(program)

    def start(self, out, *command):
        name, value = self.tag.split("=")
        # By way of pipes: files would be cut back at the restart to what they were at the version.
        process = subprocess.Popen(command, cwd=self.top / "work", env=environment(**{name: value}), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

        def copy(stream, path):
            with path.open("wb") as file, stream:
                for part in iter(lambda: stream.read1(65536), b""):
                    file.write(part)
                    file.flush()
        self.copiers = [threading.Thread(target=copy, args=(stream, self.top / f"{out}.{ending}"), daemon=True)
                        for stream, ending in ((process.stdout, "out"), (process.stderr, "err"))]
        for copier in self.copiers:
            copier.start()
        return process

    def end_of_output(self):
        for copier in self.copiers:
            copier.join(20)

    def text(self, name):
        return (self.top / name).read_text(errors="replace")

    def versions(self):
        return len(list((self.top / "images").glob("v[0-9]*")))

    def answer(self, out):
        self.end_of_output()
        # A version may have been taken after the last line.
        output = self.text("run.out") + (self.text("again.out") if out == "again" else "")
        return answer(self.program, self.top / "work", output)

    def icp_command(self, *words):
        if self.rights == "user":
            return [self.icp, words[0], "--user", USER.pw_name, *words[1:]]
        return as_user(self.icp, *words)

    def wait(self, process, seconds):
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def hang(self, process, where):
        seen = []
        for pid in sorted(processes_of(self.tag, process.pid)):
            name = read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")[:100]
            tasks = " ".join(f"{task.name}:{read(task / 'syscall').split(b' ')[0].decode()}:{read(task / 'wchan').decode()}"
                             for task in sorted(pathlib.Path(f"/proc/{pid}/task").glob("*")))
            seen.append(f"{pid} {name} [{tasks}]")
        (self.top / "hang").write_text("\n".join(seen) + "\n")
        kill_all(self.tag, process.pid)
        process.wait()
        return "HANG", where

    def run(self):
        """(result, what was said)"""
        os.makedirs(self.top)
        os.chown(self.top, USER.pw_uid, USER.pw_gid)
        subprocess.run(["cp", "-a", self.prepared, self.top / "work"], check=True)
        interval = self.random.uniform(self.length / 8, self.length / 3)
        moment = self.random.uniform(max(interval, 0.15 * self.length), 0.95 * self.length)
        run = self.start("run", *self.icp_command("run", "--dir", str(self.top / "images"), "--interval", f"{interval:.3f}s",
                                                  *self.program.options, "--", "bash", "-c", self.program.run))
        code = self.wait(run, moment)
        begin = time.monotonic()
        while code is None and not self.versions() and time.monotonic() < begin + self.limit:
            code = self.wait(run, 0.02)  # all were refused until now, or this machine is slow
        if code is None and not self.versions():
            return self.hang(run, "before a version")
        if code is not None:
            self.end_of_output()
        said = self.said("run.err")
        if code is not None:
            right = code == 0 and self.answer("run") == self.expected
            if not right:
                return "WRONG", f"never killed: exit code {code}, {self.differs('run')}; {said}"
            return ("ended", "") if self.versions() else ("refused", said)
        kill_all(self.tag, run.pid)
        run.wait()
        return self.again(f"killed after {moment:.2f} s, interval {interval:.2f} s, {self.versions()} versions")

    def again(self, how):
        restart = self.start("again", *self.icp_command("restart", "--dir", str(self.top / "images")))
        code = self.wait(restart, self.limit)
        if code is None:
            return self.hang(restart, how)
        kill_all(self.tag, restart.pid)  # none should be there
        self.end_of_output()
        said = self.said("again.err")
        if code != 0 and re.search(r"^icp: ", self.text("again.err"), re.M) and not self.text("again.out"):
            return "not again", f"{how}: {said}"
        if code != 0 or self.answer("again") != self.expected:
            return "own error" if code != 0 else "WRONG", f"{how}: exit code {code}, {self.differs('again')}; {said}"
        return "right", how

    def said(self, name):
        lines = [line for line in self.text(name).splitlines() if line.strip()]
        return " | ".join(lines[-3:])[-600:]

    def differs(self, out):
        return f"answer {self.answer(out)[-300:]!r} instead of {self.expected[-300:]!r}, output {self.text(out + '.out')[-300:]!r}"


def answer(program, work, output):
    """What is to be the same: the last line with RESULT, and what the program's check says of the directory."""
    results = re.findall(r"^RESULT .*$", output, re.M)
    checked = shell(program.answer, work, timeout=120).stdout if program.answer else ""
    return "\n".join(results[-1:] + [checked.strip()])


class Soak:
    def __init__(self, given, top):
        self.given, self.top = given, top
        self.icp = str(BUILD / "coordinator" / "icp")
        self.templates, self.expected = {}, {}

    def copy_of_icp(self):
        """Where users may not enter the directory of the build, they run a copy of it."""
        for name in ("icp", "icp-init", "icp-proxy"):
            shutil.copy(BUILD / "coordinator" / name, self.top)
        self.icp = str(self.top / "icp")

    def prepared(self, program):
        return self.templates[program.name]

    def prepare(self, program):
        directory = self.top / f"{short(program.name)}-prepared"
        directory.mkdir()
        shutil.chown(directory, USER.pw_uid, USER.pw_gid)
        done = shell("set -e\n" + program.prepare, directory, timeout=300)
        if done.returncode != 0:
            raise RuntimeError(f"{program.name}: cannot be prepared: {done.stdout[-1000:]}")
        self.templates[program.name] = directory

    def uninterrupted(self, program):
        """(answer, seconds)"""
        work = self.top / f"{self.prepared(program).name}-alone"
        subprocess.run(["cp", "-a", self.prepared(program), work], check=True)
        begin = time.monotonic()
        done = shell(program.run, work, timeout=300)
        length = time.monotonic() - begin
        expected = answer(program, work, done.stdout)
        if done.returncode != 0 or not expected.strip():
            raise RuntimeError(f"{program.name}: uninterrupted, it ended with {done.returncode}: {done.stdout[-1000:]} {expected}")
        shutil.rmtree(work)
        return expected, length

    def say(self, text):
        with PRINT:
            print(text, flush=True)

    def one(self, program, rights):
        expected, length = self.expected[program.name]
        counts, sentences = collections.Counter(), collections.Counter()
        for number in range(self.given.moments):
            moment = Moment(self, program, rights, number, expected, length)
            for _ in range(3):  # a run that ended before it was killed says little
                result, said = moment.run()
                if result != "ended":
                    break
                shutil.rmtree(moment.top)
            counts[result] += 1
            if result != "right":
                sentences[f"{result}: {said}"] += 1
            if result in BAD:
                self.say(f"  {program.name} ({rights}) moment {number}: {result}: {said}")
                if self.given.keep:
                    shutil.copytree(moment.top, pathlib.Path(self.given.keep) / moment.top.name, symlinks=True, dirs_exist_ok=True,
                                    ignore_dangling_symlinks=True, copy_function=copy_what_can_be)
            shutil.rmtree(moment.top, ignore_errors=True)
        self.report(program, rights, length, counts, sentences)
        return counts

    def report(self, program, rights, length, counts, sentences):
        text = ", ".join(f"{count} {what}" for what, count in counts.items())
        self.say(f"{program.name} {version_of(program)} ({rights}, {length:.1f} s): {text}")
        for sentence, count in sentences.items():
            if not sentence.startswith(BAD):
                self.say(f"  {count} x {sentence}")
        if self.given.results:
            with PRINT, open(self.given.results, "a", encoding="utf-8") as file:
                file.write(json.dumps({"program": program.name, "version": version_of(program), "rights": rights, "counts": counts,
                                       "seconds": round(length, 1), "said": sentences, "seed": self.given.seed}) + "\n")

    def all_of(self, program):
        try:
            self.prepare(program)
            self.expected[program.name] = self.uninterrupted(program)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self.say(f"  {error}")
            return collections.Counter({"cannot be tried": 1})
        return sum((self.one(program, rights) for rights in self.given.rights.split(",")), collections.Counter())

    def run(self, programs):
        with concurrent.futures.ThreadPoolExecutor(self.given.at_once) as pool:
            return sum(pool.map(self.all_of, programs), collections.Counter())


def copy_what_can_be(source, target):
    if pathlib.Path(source).is_file():  # no sockets or FIFOs
        shutil.copy2(source, target)
    return target


def version_of(program):
    shown = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", program.package], stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL, text=True, check=False)
    return shown.stdout or "?"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--rights", default="user,none")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--keep", help="directory for what is left of moments that went wrong")
    parser.add_argument("--results", help="a file to which a line of JSON is added for each program")
    parser.add_argument("name", nargs="*", help="programs; all without")
    return parser.parse_args()


def main():
    given = arguments()
    if os.geteuid() != 0 or USER is None:
        print(f"programs.py needs root, and the user {USER_NAME} (ICP_SOAK_USER)")
        return 77
    wanted = [each for each in program_list.PROGRAMS if not given.name or each.name in given.name]
    present, missing = [], []
    for program in wanted:
        there = shell(program.needs, "/").returncode == 0
        (present if there else missing).append(program)
    print(f"seed {given.seed}, {given.moments} moments each; skipped, not installed: "
          f"{', '.join(f'{each.name} ({each.package})' for each in missing) or 'none'}", flush=True)
    top = pathlib.Path(tempfile.mkdtemp(prefix="icp-soak-", dir="/var/tmp"))
    top.chmod(0o755)
    soak = Soak(given, top)
    try:
        soak.copy_of_icp()
        counts = soak.run(present)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return 1 if any(counts[bad] for bad in ("WRONG", "HANG")) else 0


if __name__ == "__main__":
    sys.exit(main())
