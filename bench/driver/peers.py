# SPDX-License-Identifier: GPL-2.0-or-later
"""criu and dmtcp with the same work, where they are installed."""

import shutil
import statistics
import subprocess
import time

from driver.jobs import kill, wait_for


def started(bench, mib, prefix=()):
    directory = bench.fresh_dir()
    output = directory / "output"
    with open(output, "wb") as file:
        process = subprocess.Popen([*prefix, bench.programs / "malloc_and_write", "--mib", str(mib), "--rounds", "1000000000", "--round-ms",
                                    "200"], stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=directory, start_new_session=True)
    wait_for(lambda: "round 0" in output.read_text(), 300, "the program's start")
    return process, directory


def criu(bench, mib):
    process, directory = started(bench, mib)
    image = directory / "image"
    image.mkdir()
    begin = time.monotonic()
    subprocess.run(["criu", "dump", "-t", str(process.pid), "-D", image, "--shell-job"], check=True, stdout=subprocess.DEVNULL)
    dumped = time.monotonic() - begin
    process.wait()
    begin = time.monotonic()
    subprocess.run(["criu", "restore", "-D", image, "--shell-job", "-d", "--pidfile", directory / "pid"], check=True,
                   stdout=subprocess.DEVNULL)
    restored = time.monotonic() - begin
    kill(int((directory / "pid").read_text()))
    shutil.rmtree(directory)
    return {"complete_s": dumped, "restart_s": restored}


def dmtcp(bench, mib):
    port = ["--coord-port", "7799"]
    process, directory = started(bench, mib, ["dmtcp_launch", "--new-coordinator", "--no-gzip", *port])
    begin = time.monotonic()
    subprocess.run(["dmtcp_command", *port, "--bcheckpoint"], check=True, stdout=subprocess.DEVNULL)
    dumped = time.monotonic() - begin
    subprocess.run(["dmtcp_command", *port, "--kill"], check=False, stdout=subprocess.DEVNULL)
    process.wait()
    images = [str(path) for path in directory.glob("ckpt_*.dmtcp")]
    output = directory / "output"
    rounds = output.read_text().count("\n")
    begin = time.monotonic()
    again = subprocess.Popen(["dmtcp_restart", "--new-coordinator", *port, *images], cwd=directory, stdout=subprocess.DEVNULL)
    wait_for(lambda: output.read_text().count("\n") != rounds, 120, "the restart")
    restored = time.monotonic() - begin
    subprocess.run(["dmtcp_command", *port, "--kill"], check=False, stdout=subprocess.DEVNULL)
    again.wait()
    shutil.rmtree(directory)
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
