# SPDX-License-Identifier: GPL-2.0-or-later
"""A program under icp, its versions, and restarts of it."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import time

SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.005)
    raise RuntimeError(f"{what} did not come about within {seconds} s")


def kill(pid):
    """SIGKILL, and waits until the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
        wait_for(lambda: not alive(pid), 30, f"the end of process {pid}")


def alive(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    return False


def descendants(pid):
    """The process and all below it."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        for task in pathlib.Path(f"/proc/{found[-1]}/task").iterdir():
            waiting += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Program:
    """What prints a line a round into self.output."""

    def text(self):
        return self.output.read_text(errors="replace")

    def rounds(self):
        return self.text().count("\n")


class Alone(Program):
    """`command` by itself, in a session and a directory of its own. What it prints is a file there."""

    def __init__(self, bench, command, ready="round 0"):
        self.dir = bench.fresh_dir()
        self.output = self.dir / "output"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                            cwd=self.dir, start_new_session=True)
        self.pid = self.process.pid
        wait_for(lambda: ready in self.text(), 300, f"the start of {command[0]}")

    def end(self):
        self.process.kill()
        self.process.wait()


class Job(Program):
    """`command` under icp run, which takes a version at each take(). Its standard output is a file."""

    def __init__(self, bench, command, options=(), interval="10h", ready="round 0"):
        self.bench, self.dir = bench, bench.fresh_dir()
        self.image, self.output = self.dir / "image", self.dir / "output"
        self.log = open(self.dir / "log", "w+")
        with open(self.output, "wb") as output:
            self.icp = subprocess.Popen(
                [bench.icp, "-v", "run", "--dir", self.image, "--interval", interval, *options, "--", *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=self.log)
        wait_for(lambda: ready in self.text(), 300, f"the start of {command[0]}")
        self.pid = int(re.search(r"process (\d+),", self.said())[1])

    def said(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text()

    def next_round(self, number=1):
        goal = self.rounds() + number
        wait_for(lambda: self.rounds() >= goal, 120, "the next round")

    def versions_said(self):
        """Total seconds, with the flush to disk, by version."""
        found = re.findall(r"version (\d+): .*stopped [^,]*, ([\d.]+) ([^\s,]+)", self.said())
        return {int(version): float(number) * SECONDS[unit] for version, number, unit in found}

    def take(self):
        """One more version; its statistics."""
        number = max(self.versions_said(), default=0) + 1
        self.icp.send_signal(signal.SIGUSR1)

        def done():
            if "no version taken" in self.said():
                raise RuntimeError(self.said())
            return self.versions_said().get(number)

        flushed = wait_for(done, 300, f"version {number}")
        return self.stats(number) | {"flushed_s": flushed}

    def listed(self):
        listed = json.loads(subprocess.run([self.bench.icp, "list", "--json", self.image], stdout=subprocess.PIPE, check=True).stdout)
        return {version["version"]: version for version in listed["versions"]}

    def stats(self, number):
        found = json.loads(subprocess.run([self.bench.icp, "show", "--json", "--version", str(number), self.image],
                                          stdout=subprocess.PIPE, check=True).stdout)
        stats = found.get("manifest", found).get("stats")
        return {"stop_s": stats["stop_ns"] / 1e9, "total_s": stats["total_ns"] / 1e9, "bytes": stats["bytes_written"],
                "pages": stats["pages_written"]}

    def restart(self, version=None, options=(), measure=None):
        """Seconds until the processes run again. They are killed then, after `measure` has had a look. What the job has written since stays: a later version
        could not be restarted after an earlier one had cut it off."""
        chosen = ["--version", str(version)] if version else []
        begin = time.monotonic()
        done = subprocess.run([self.bench.icp, "restart", "--dir", self.image, "--detach", *self.bench.changed_files, *chosen, *options],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        taken = time.monotonic() - begin
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        if measure:
            measure(int(done.stdout))
        kill(int(done.stdout))
        return taken

    def end(self):
        kill(self.pid)  # unless it is gone
        self.icp.wait(timeout=60)
        self.log.close()
