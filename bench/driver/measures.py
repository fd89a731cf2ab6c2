# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured, part by part. Times in seconds, sizes in bytes."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

from driver.jobs import Alone, Job, cpu_seconds, descendants, kill, wait_for
from driver.peers import peers

MIB = 1 << 20
FOREVER = 10**9


def median(values):
    return statistics.median(values)


class Bench:
    def __init__(self, build, work, quick):
        self.work, self.quick = work, quick
        self.build, self.soak = build, pathlib.Path(__file__).resolve().parents[2] / "tests" / "soak"
        self.icp = build / "coordinator" / "icp"
        self.programs, self.tools = build / "tests" / "programs", build / "bench"
        # What the job has written since its last version stays as it is; a build of before that option did not look.
        known = subprocess.run([self.icp, "restart", "--help"], stdout=subprocess.PIPE, text=True, check=True).stdout
        self.changed_files = ["--changed-files", "accept"] if "--changed-files" in known else []

    def fresh_dir(self):
        return pathlib.Path(tempfile.mkdtemp(dir=self.work))

    @contextlib.contextmanager
    def job(self, command, **options):
        job = Job(self, command, **options)
        try:
            yield job
        finally:
            job.end()
            shutil.rmtree(job.dir, ignore_errors=True)

    def malloc_and_write(self, mib, percent=1, round_ms=200, shared=None, **options):
        return self.job([self.programs / "malloc_and_write", "--mib", mib, "--percent", percent, "--rounds", FOREVER, "--round-ms",
                         round_ms, *(["--shared", shared] if shared else [])], **options)

    @contextlib.contextmanager
    def malloc_and_write_alone(self, mib, percent):
        """Without icp, and without a pause between rounds."""
        alone = Alone(self, [self.programs / "malloc_and_write", "--mib", mib, "--percent", percent, "--rounds", FOREVER, "--round-ms", 0])
        try:
            yield alone
        finally:
            alone.end()

    def bandwidth(self, mib):
        path = self.fresh_dir() / "file"
        done = subprocess.run([self.tools / "bandwidth", path, str(mib)], stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    def warm_memory(self, mib):
        """A virtual machine gives freed memory back to its host: getting it again would be what is measured. Nor is what others left
        to be written to disk to slow down what comes."""
        self.bandwidth(mib)
        os.sync()


def limits(bench):
    """memcpy, plain write (into the page cache, and flushed), read, first touch: the median of five."""
    runs = [bench.bandwidth(256 if bench.quick else 1024) for _ in range(3 if bench.quick else 5)]
    return {key: median([run[key] for run in runs]) for key in runs[0]}


def full_and_incremental(job, number):
    """A full version, and the medians of `number` incremental ones, a round of the job before each."""
    full = job.take()
    steps = []
    for _ in range(number):
        job.next_round()
        steps.append(job.take())
    return {"full": full, "incremental": {key: median([step[key] for step in steps]) for key in full}}


def sizes(bench):
    """malloc_and_write: full and incremental (1% written between versions), and restart, over sizes."""
    rows = []
    for mib in (64, 256, 1024) if bench.quick else (64, 128, 256, 512, 1024, 2048, 4096):
        bench.warm_memory(mib)
        with bench.malloc_and_write(mib, round_ms=max(300, mib)) as job:  # a version must not span two rounds
            plain = bench.bandwidth(mib)
            row = {"mib": mib, **full_and_incremental(job, 3 if bench.quick else 7),
                   "plain_write_s": mib * MIB / plain["write"], "plain_flushed_s": mib * MIB / plain["write_flushed"],
                   "plain_read_s": mib * MIB / plain["read"]}
            kill(job.pid)  # as after a death: its memory is there for the restart
            row["restart_s"] = median([job.restart() for _ in range(2 if bench.quick else 3)])
            rows.append(row)
    return rows


def mgs(bench):
    """Modified Gram-Schmidt, four processes on one System V segment: image size, full and incremental."""
    rows, columns = (2000, 200) if bench.quick else (8000, 400)
    command = [bench.programs / "mgs", "--rows", rows, "--columns", columns, "--fork", 4, "--step-ms", 100]
    matrices = 8 * columns * (rows + columns)
    before = segments(matrices)
    with bench.job(command, ready="column") as job:
        try:
            taken = []
            for _ in range(4 if bench.quick else 12):
                taken.append(job.take())
                time.sleep(1)
        finally:
            kill(job.pid)
            for segment in segments(matrices) - before:  # a killed program leaves it in the machine's IPC namespace
                subprocess.run(["ipcrm", "-m", segment], check=True)
    return {"rows": rows, "columns": columns, "segment_bytes": matrices, "versions": taken}


def shared(bench):
    """malloc_and_write in shared memory of each kind, 1% written between versions; `private` for comparison."""
    mib = 256 if bench.quick else 1024
    found = {}
    for kind in (None, "sysv", "anonymous", "memfd", "posix", "memfd-open"):
        bench.warm_memory(mib)
        with bench.malloc_and_write(mib, round_ms=300, shared=kind) as job:
            found[kind or "private"] = full_and_incremental(job, 5 if bench.quick else 9)
    return {"mib": mib, "kinds": found}


def segments(size):
    """Ids of the System V segments of this size, or a page more: of other programs' there is hardly one."""
    rows = [line.split() for line in pathlib.Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return {row[1] for row in rows if size <= int(row[3]) < size + 4096}


def floor(bench):
    """The stop without pre-copy, 1% written before it, against interrupt + PAGEMAP_SCAN + process_vm_readv of as much."""
    mib, rounds = (1024, 5) if bench.quick else (4096, 9)
    bench.warm_memory(mib)
    done = subprocess.run([bench.tools / "floor", str(mib), "1", str(rounds)], stdout=subprocess.PIPE, check=True)
    least = json.loads(done.stdout)
    with bench.malloc_and_write(mib, round_ms=mib, options=["--no-precopy"]) as job:
        job.take()
        taken = []
        for _ in range(rounds):
            job.next_round()
            taken.append(job.take()["stop_s"])
        return {"mib": mib, "floor_s": least["stop_s"], "stop_s": median(taken)}


def fixed(bench):
    """Stop time of small trees: one 4 MiB process, 64 threads, 100 processes."""
    found = {}
    for name, options in {"4 MiB, 1 thread": ["--mib", 4], "4 MiB, 64 threads": ["--mib", 4, "--threads", 64],
                          "100 processes": ["--mib", 0.25, "--processes", 100]}.items():
        with bench.job([bench.tools / "sleepers", *options], ready="ready") as job:
            job.take()
            taken = [job.take() for _ in range(5 if bench.quick else 15)]
            found[name] = {key: median([one[key] for one in taken]) for key in taken[0]} | {
                "best_stop_s": min(one["stop_s"] for one in taken), "restart_s": median([job.restart() for _ in range(3)])}
    return found


def many_of(number):
    """By name: options of sleepers, each for as many as the goal is said for when `number` is 1000."""
    return {f"{number} threads": ["--mib", 1, "--threads", number],
            f"{number} threads in timed waits": ["--mib", 1, "--threads", number, "--timed"],
            f"{number} processes": ["--mib", 0.0625, "--processes", number],
            f"{number} Unix sockets": ["--mib", 1, "--unix", number],
            f"{number * 8} Unix sockets": ["--mib", 1, "--unix", number * 8],
            f"{number} UDP sockets": ["--mib", 1, "--udp", number],
            f"{number} TCP sockets": ["--mib", 1, "--tcp", number],
            f"{number * 10} mappings": ["--mib", 1, "--inherited", number * 10 / 256, "--mappings", number * 10]}


def many(bench):
    """What could grow with the square: threads, processes (children of one), sockets, mappings; twice as many in the second row of
    each."""
    found = {}
    for number in (500, 1000) if bench.quick else (1000, 2000):
        for name, options in many_of(number).items():
            with bench.job([bench.tools / "sleepers", *options], ready="ready") as job:
                job.take()
                taken = [job.take() for _ in range(3)]
                kill(job.pid)  # as after a death: its ports are free
                found[name] = {key: median([one[key] for one in taken]) for key in taken[0]} | {
                    "restart_s": median([job.restart() for _ in range(3)])}
    return found


def proportional_bytes(pids):
    """The sum of PSS."""
    texts = [pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(line.split()[1]) << 10 for text in texts for line in text.splitlines() if line.startswith("Pss:"))


def family(bench):
    """Memory that five processes share by fork(): what it takes before a version, after it, in the image, and after a restart."""
    mib = 64 if bench.quick else 300
    with bench.job([bench.tools / "sleepers", "--mib", 0.0625, "--processes", 5, "--inherited", mib], ready="ready") as job:
        found = {"mib": mib, "before": proportional_bytes(descendants(job.pid))}
        found |= {key: value for key, value in job.take().items() if key in ("stop_s", "bytes", "total_s")}
        found["after"] = proportional_bytes(descendants(job.pid))
        kill(job.pid)
        found["restart_s"] = job.restart(measure=lambda pid: found.update(restarted=proportional_bytes(descendants(pid))))
    return found


def versions(bench):
    """Restart time over the number of versions, each of which rewrote 1% (some more where a version takes longer than a round). As
    many as half of the free disk has room for."""
    mib, numbers = (64, (1, 10, 100)) if bench.quick else (512, (1, 10, 100, 700))
    with bench.malloc_and_write(mib, round_ms=20 if bench.quick else 100) as job:
        left, taken = shutil.disk_usage(bench.work).free // 2, 0
        while taken < numbers[-1] and left > 0:
            left -= job.take()["bytes"]
            taken += 1
        numbers = sorted({number for number in numbers if number < taken} | {taken})
        times = {number: [] for number in numbers}
        for _ in range(5):  # in turn: whatever else the machine does falls on all of them
            for number in numbers:
                times[number].append(job.restart(version=number))
        index = [file.stat().st_size for file in job.image.glob(f"v{numbers[-1]:06}/*/task_mm_*.idx")]
        bytes_on_disk = sum(file.stat().st_blocks * 512 for file in job.image.rglob("*") if file.is_file())
        return {"mib": mib, "restart_s": {str(number): median(of) for number, of in times.items()},
                "best_restart_s": {str(number): min(of) for number, of in times.items()},
                "index_bytes_per_page": max(index) / (mib * 256), "image_bytes": bytes_on_disk}


def rate(job, seconds):
    """Rounds a second, and rounds a second of processor time."""
    begin, rounds, used = time.monotonic(), job.rounds(), cpu_seconds(job.pid)
    time.sleep(seconds)
    done = job.rounds() - rounds
    return done / (time.monotonic() - begin), done / max(cpu_seconds(job.pid) - used, 0.01)


def tracking_alone(bench, job, pairs):
    """The same program without a tracker against `job`, a second each in turn while the other is stopped: both drift with whatever
    else the machine does."""
    with bench.malloc_and_write_alone(256, percent=10) as plain:
        ratios = []
        for _ in range(pairs):
            turn = {}
            for one, other in ((plain, job), (job, plain)):
                os.kill(other.pid, signal.SIGSTOP)
                os.kill(one.pid, signal.SIGCONT)
                turn[one] = rate(one, 1)
            ratios.append([plainly / tracked - 1 for plainly, tracked in zip(turn[plain], turn[job])])
    return {key: median(values) for key, values in zip(("wall", "cpu"), zip(*ratios))}


def slowdown(bench):
    """Work done with versions at an interval against work done without, in turn in one process; and with the pages tracked but no
    version taken. The program writes 1% of 256 MiB at random all the time."""
    window = 3 if bench.quick else 20
    pairs = 3
    found = {}
    with bench.malloc_and_write(256, percent=10, round_ms=0) as job:
        job.take()
        job.next_round(30)  # nearly every page has been touched since it was armed
        found["tracking_alone"] = tracking_alone(bench, job, 8 if bench.quick else 30)
        for interval in (1, 10) if bench.quick else (1, 10, 60):
            ratios = []
            for _ in range(pairs if interval < 60 else 2):
                without = rate(job, window)
                span = max(window, interval)
                began, rounds, used = time.monotonic(), job.rounds(), cpu_seconds(job.pid)
                taken = 0
                while time.monotonic() - began < span:
                    job.take()
                    taken += 1
                    time.sleep(max(0, min(began + taken * interval, began + span) - time.monotonic()))
                done, wall = job.rounds() - rounds, time.monotonic() - began
                busy = max(cpu_seconds(job.pid) - used, 0.01)
                ratios.append((without[0] / (done / wall) - 1, without[1] / (done / busy) - 1))
            found[f"{interval} s"] = {"wall": median([a for a, _ in ratios]), "cpu": median([b for _, b in ratios])}
    return found


def lazy(bench):
    """Until the processes run: restart --lazy against restart."""
    help_text = subprocess.run([bench.icp, "restart", "--help"], stdout=subprocess.PIPE, text=True, check=True).stdout
    if "--lazy" not in help_text:
        return None
    rows = []
    for mib in (64, 1024) if bench.quick else (64, 1024, 4096):
        bench.warm_memory(mib)
        with bench.malloc_and_write(mib) as job:
            job.take()
            rows.append({"mib": mib, "restart_s": median([job.restart() for _ in range(3)]),
                         "lazy_s": median([lazy_answer(job) for _ in range(3)])})
    return rows


def lazy_answer(job):
    """icp restart --lazy says when the processes run; it ends when the last page is there."""
    pid_file = job.dir / "pid"
    pid_file.unlink(missing_ok=True)
    begin = time.monotonic()
    icp = subprocess.Popen([job.bench.icp, "restart", "--dir", job.image, "--lazy", "--pid-file", pid_file], stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), 120, "a lazy restart")
        return time.monotonic() - begin
    finally:
        icp.kill()
        icp.wait()


def agents(bench):
    """icpctld with simulated agents: a two-phase round of one step over all of them."""
    number = 200 if bench.quick else 1000
    done = subprocess.run([bench.soak / "agents.py", "--agents", str(number), "--rounds", "9"], stdout=subprocess.PIPE, text=True,
                          check=False, env=os.environ | {"ICP_BUILD_DIR": str(bench.build)})
    rows = [dict(word.split("=", 1) for word in line.split()) for line in done.stdout.splitlines() if line.startswith("agents=")]
    if not rows:
        raise RuntimeError(done.stdout)
    return [{"kind": row["kind"], "agents": int(row["agents"]), "round_s": float(row["round_ms_median"]) / 1000,
             "versions_per_s": float(row["commits_per_s"]), "bytes_per_agent": float(row["kib_per_agent"]) * 1024} for row in rows]


def index(bench):
    """Google Benchmark's results of bench/page_index, by name."""
    only = ["--benchmark_filter=/(10000|100000|1000000)$|on_disk"] if bench.quick else []
    shorter = ["--benchmark_min_time=0.1"] if bench.quick else []
    done = subprocess.run([bench.tools / "page_index", "--benchmark_format=json", *only, *shorter], stdout=subprocess.PIPE, check=True,
                          cwd=bench.work, env=os.environ | {"TMPDIR": str(bench.work)})
    found = {}
    for one in json.loads(done.stdout)["benchmarks"]:
        found[one["name"].removesuffix("/iterations:1")] = {key: one[key] for key in ("cpu_time", "time_unit", "items_per_second", "bytes_per_page")
                                                            if key in one}
    return found


PARTS = {"limits": limits, "sizes": sizes, "shared": shared, "mgs": mgs, "floor": floor, "fixed": fixed, "many": many, "family": family, "versions": versions,
         "slowdown": slowdown, "lazy": lazy, "index": index, "agents": agents, "peers": peers}
