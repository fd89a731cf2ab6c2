#!/usr/bin/env -S python3 -B
# SPDX-License-Identifier: GPL-2.0-or-later
"""A large malloc_and_write there and back: `icp run` takes versions of it, the kernel kills it, `icp restart` ends it.

    tests/soak/large_memory.py [--mib 4096] [--percent 1] [--versions 4]

Once under `icp run` (incremental versions), once with `icp checkpoint --kill`. Its checksum must be that of a run without
checkpoints, and an incremental version at least 30 times smaller than the full one. (Its standard error is nowhere: a file
would be cut back at the restart to what it was at the checkpoint.) Needs root, a build (ICP_BUILD_DIR,
default build/release), memory for one such program and disk for two.
"""

import argparse
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("ICP_BUILD_DIR", ROOT / "build" / "release"))
ICP = BUILD / "coordinator" / "icp"
AT_MOST = 600  # seconds for any one program


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=4096)
    parser.add_argument("--percent", type=float, default=1)
    parser.add_argument("--versions", type=int, default=4, help="how many are taken before the kill, 3 or more")
    return parser.parse_args()


def command(given, rounds, pause_ms):
    return [str(BUILD / "tests" / "programs" / "malloc_and_write"), "--mib", str(given.mib), "--percent", str(given.percent),
            "--rounds", str(rounds), "--round-ms", str(pause_ms)]


def result(output):
    found = re.search(r"^RESULT .*$", output, re.M)
    return found[0] if found else None


def versions(images):
    shown = subprocess.run([ICP, "list", "--json", images], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return [each["stats"] | {"version": each["version"]} for each in json.loads(shown.stdout)["versions"]] if shown.returncode == 0 else []


def wait_for(what, process, condition):
    until = time.monotonic() + AT_MOST
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"{what}: not seen; the program's exit code is {process.poll()}")
        time.sleep(0.05)


def wait_for_round(lines, wanted=None):
    """Reads lines to that of this round; without one, to the newest that is there and then the next."""
    while wanted is None and select.select([lines], [], [], 0)[0]:
        lines.readline()
    for line in lines:
        if wanted is None or line.startswith(b"round %d " % wanted):
            return
    raise SystemExit("the program ended before its time")


def child_of(pid):
    return int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def restart(images):
    begin = time.monotonic()
    done = subprocess.run([ICP, "restart", "--dir", images], stdout=subprocess.PIPE, text=True, timeout=AT_MOST, check=False)
    print(f"  icp restart: exit code {done.returncode}, {time.monotonic() - begin:.1f} s with the rest of the run")
    return result(done.stdout)


def killed_under_icp_run(given, images, rounds, pause_ms):
    """A version after a round each, SIGKILL, restart; returns the result and the sizes of the versions in bytes."""
    with subprocess.Popen([ICP, "run", "--dir", images, "--interval", "1h", "--", *command(given, rounds, pause_ms)],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as run:
        try:
            wait_for_round(run.stdout, 1)
            for version in range(1, given.versions + 1):
                run.send_signal(signal.SIGUSR1)
                wait_for(f"version {version}", run, lambda wanted=version: len(versions(images)) >= wanted)
                wait_for_round(run.stdout)
        finally:
            if run.poll() is None:
                os.kill(child_of(child_of(run.pid)), signal.SIGKILL)  # the program, below its keeper
        run.stdout.read()
        run.wait(AT_MOST)
    taken = versions(images)
    for each in taken:
        print(f"  version {each['version']}: {each['bytes_written'] / 2**20:.1f} MiB, stopped {each['stop_ns'] / 1e6:.1f} ms, "
              f"complete after {each['total_ns'] / 1e9:.2f} s", flush=True)
    return restart(images), [each["bytes_written"] for each in taken]


def killed_by_icp_checkpoint(given, images, rounds, pause_ms):
    """One full version of a program already running, which ends it; returns the result after the restart."""
    with subprocess.Popen(command(given, rounds, pause_ms), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          bufsize=0) as program:
        wait_for_round(program.stdout, 2)
        subprocess.run([ICP, "checkpoint", "--dir", images, "--pid", str(program.pid), "--kill"], check=True)
        program.stdout.read()
        print(f"  icp checkpoint --kill: the program ended with {program.wait(AT_MOST)}")
    return restart(images)


def main():
    given = arguments()
    rounds, pause_ms = 20, 3000  # a version must not span two rounds
    expected = result(subprocess.run(command(given, rounds, 0), stdout=subprocess.PIPE, text=True, timeout=AT_MOST, check=True).stdout)
    print(f"without checkpoints: {expected}", flush=True)
    top = pathlib.Path(tempfile.mkdtemp(prefix="icp-large-", dir="/var/tmp"))
    try:
        after_kill, sizes = killed_under_icp_run(given, top / "run", rounds, pause_ms)
        after_checkpoint = killed_by_icp_checkpoint(given, top / "checkpoint", rounds, pause_ms)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    ratio = sizes[0] / max(sizes[2:])  # the second has what was written during the first, too
    print(f"after SIGKILL and restart:            {after_kill}\nafter icp checkpoint --kill, restart: {after_checkpoint}")
    print(f"full version {sizes[0] / 2**20:.0f} MiB, the largest incremental one 1/{ratio:.0f} of it")
    return 0 if expected == after_kill == after_checkpoint and ratio >= 30 else 1


if __name__ == "__main__":
    sys.exit(main())
