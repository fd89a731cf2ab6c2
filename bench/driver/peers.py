# SPDX-License-Identifier: GPL-2.0-or-later
"""criu and dmtcp with the same work, where they are installed."""

import shutil
import statistics
import subprocess
import time

from driver.jobs import Alone, kill, wait_for


def started(bench, mib, prefix=()):
    return Alone(bench, [*prefix, bench.programs / "malloc_and_write", "--mib", mib, "--rounds", 10**9, "--round-ms", 200])


def criu(bench, mib):
    alone = started(bench, mib)
    image = alone.dir / "image"
    image.mkdir()
    begin = time.monotonic()
    subprocess.run(["criu", "dump", "-t", str(alone.pid), "-D", image, "--shell-job"], check=True, stdout=subprocess.DEVNULL)
    dumped = time.monotonic() - begin
    alone.process.wait()
    begin = time.monotonic()
    subprocess.run(["criu", "restore", "-D", image, "--shell-job", "-d", "--pidfile", alone.dir / "pid"], check=True,
                   stdout=subprocess.DEVNULL)
    restored = time.monotonic() - begin
    kill(int((alone.dir / "pid").read_text()))
    shutil.rmtree(alone.dir)
    return {"complete_s": dumped, "restart_s": restored}


def dmtcp(bench, mib):
    port = ["--coord-port", "7799"]
    alone = started(bench, mib, ["dmtcp_launch", "--new-coordinator", "--no-gzip", *port])
    begin = time.monotonic()
    subprocess.run(["dmtcp_command", *port, "--bcheckpoint"], check=True, stdout=subprocess.DEVNULL)
    dumped = time.monotonic() - begin
    subprocess.run(["dmtcp_command", *port, "--kill"], check=False, stdout=subprocess.DEVNULL)
    alone.process.wait()
    images = [str(path) for path in alone.dir.glob("ckpt_*.dmtcp")]
    rounds = alone.rounds()
    begin = time.monotonic()
    again = subprocess.Popen(["dmtcp_restart", "--new-coordinator", *port, *images], cwd=alone.dir, stdout=subprocess.DEVNULL)
    wait_for(lambda: alone.rounds() != rounds, 120, "the restart")
    restored = time.monotonic() - begin
    subprocess.run(["dmtcp_command", *port, "--kill"], check=False, stdout=subprocess.DEVNULL)
    again.wait()
    shutil.rmtree(alone.dir)
    return {"complete_s": dumped, "restart_s": restored}


def ours(bench, mib):
    with bench.malloc_and_write(mib) as job:
        complete = job.take()["total_s"]
        kill(job.pid)
        return {"complete_s": complete, "restart_s": job.restart()}


def peers(bench):
    """{name: {MiB: {complete_s, restart_s, ours: the same}}}, in turn: whatever else the machine does falls on both."""
    found = {}
    for name, program, measure in (("criu", "criu", criu), ("dmtcp", "dmtcp_launch", dmtcp)):
        if shutil.which(program) is None:
            continue
        for mib in (64, 1024) if bench.quick else (64, 1024, 4096):
            runs = {measure: [], ours: []}
            for _ in range(1 if bench.quick else 3):
                for one, taken in runs.items():
                    bench.warm_memory(mib)
                    taken.append(one(bench, mib))
            theirs, own = ({key: statistics.median(run[key] for run in taken) for key in taken[0]} for taken in runs.values())
            found.setdefault(name, {})[str(mib)] = theirs | {"ours": own}
    return found or None
