# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cluster can leave behind on its machine, and how to take it away.

Processes, cgroups, mounts and System V IPC objects. A process is recognised as
a node's own by any of three signs, none of which another cluster shares, since
node names are unique to a cluster:
  - its environment names the node (slurmd puts SLURMD_NODENAME into every task,
    icp-cluster puts ICP_CLUSTER_NODE into slurmd, which hands it to slurmstepd);
  - it sits in a cgroup named after the node;
  - its ancestor is recognised.
"""

import os
import pathlib
import re
import signal
import subprocess
import time

CGROUP_ROOT = pathlib.Path("/sys/fs/cgroup")
IPC_KINDS = {"shm": ("shmid", "-m"), "sem": ("semid", "-s"), "msg": ("msqid", "-q")}


def read(path):
    """A /proc or cgroup file's bytes; empty if it vanished meanwhile."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def stat(pid):
    """/proc/PID/stat from the third field on, or [] if no thread of it runs any more.

    A leader that has ended is shown as a zombie while its threads live on.
    """
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(fields) < 20:
        return []
    if fields[0] in (b"Z", b"X"):
        try:
            if len(os.listdir(f"/proc/{pid}/task")) <= 1:
                return []
        except OSError:
            return []
    return fields


def start_time(pid):
    """A process's start in clock ticks since boot, or None if there is none.

    With the boot id it tells a process from a later one of the same pid.
    """
    fields = stat(pid)
    return int(fields[19]) if fields else None


def boot_id():
    return read("/proc/sys/kernel/random/boot_id").decode().strip()


def node_cgroups(nodes):
    """The cgroup directories at the top of each node's hierarchies."""
    found = []
    for node in nodes:
        found += CGROUP_ROOT.glob(f"*/slurm_{node}")
        found += CGROUP_ROOT.glob(f"**/{node}_slurmstepd.scope") if _unified() else []
    return found


def below(top):
    """A cgroup and all within it. Slurm may take them away meanwhile (Path.rglob fails then)."""
    return [pathlib.Path(path) for path, _, _ in os.walk(top)]


def job_cgroups(nodes):
    return [path for top in node_cgroups(nodes) for path in below(top) if path.name.startswith("job_")]


def _unified():
    return (CGROUP_ROOT / "cgroup.controllers").exists()


def processes(nodes):
    """Pids of everything that runs on `nodes`, this process's ancestors excepted."""
    marks = {f"{key}={node}".encode()
             for node in nodes for key in ("SLURMD_NODENAME", "ICP_CLUSTER_NODE")}
    parents, found = {}, set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        fields = stat(entry)
        if not fields:
            continue
        parents[int(entry)] = int(fields[1])
        if marks & set(read(f"/proc/{entry}/environ").split(b"\0")):
            found.add(int(entry))
    for top in node_cgroups(nodes):
        for cgroup in below(top):
            found |= {int(pid) for pid in read(cgroup / "cgroup.procs").split() if int(pid) > 0}
    grew = True
    while grew:
        children = {pid for pid, parent in parents.items() if parent in found}
        grew = not children <= found
        found |= children
    pid = os.getpid()
    while pid > 1:
        found.discard(pid)
        pid = parents.get(pid, 0)
    return found


def kill_all(find, patience=15):
    """SIGKILL what `find()` returns until it returns nothing. Returns what is left.

    slurmstepd goes first: one that lives a moment longer than its tasks tells slurmctld of their end."""
    deadline = time.monotonic() + patience
    while left := find():
        for pid in sorted(left, key=lambda pid: not read(f"/proc/{pid}/comm").startswith(b"slurmstepd")):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if time.monotonic() > deadline:
            return left
        time.sleep(0.05)
    return set()


def thaw(nodes):
    """Let frozen processes run, or they could not die."""
    for top in node_cgroups(nodes):
        for cgroup in below(top):
            try:
                (cgroup / "freezer.state").write_text("THAWED")
            except OSError:
                pass


def remove_cgroups(nodes, patience=5):
    """Remove the nodes' cgroup directories. Returns those that would not go."""
    deadline = time.monotonic() + patience
    while True:
        tops = node_cgroups(nodes)
        for top in tops:
            for path, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(path)
                except OSError:
                    pass
        left = [top for top in tops if top.exists()]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def mounts(directories):
    """Mount points at or under any of `directories`, innermost first."""
    found = []
    for line in read("/proc/self/mountinfo").decode(errors="replace").splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split()[4])
        if any(point == str(d) or point.startswith(f"{d}/") for d in directories):
            found.append(point)
    return found[::-1]


def unmount(directories):
    """Unmount everything under `directories`. Returns what is still mounted."""
    for point in mounts(directories):
        subprocess.run(["umount", "-l", point], capture_output=True, timeout=30, check=False)
    return mounts(directories)


def ipc_objects(uid):
    """System V objects of `uid` in this IPC namespace: {(kind, id, key, ctime)}."""
    found = set()
    for kind, (id_name, _) in IPC_KINDS.items():
        lines = read(f"/proc/sysvipc/{kind}").decode().splitlines()
        head = lines[0].split() if lines else []
        for line in lines[1:]:
            row = dict(zip(head, line.split()))
            if int(row["uid"]) == uid:
                found.add((kind, int(row[id_name]), int(row["key"]), int(row["ctime"])))
    return found


def remove_ipc(objects):
    """ipcrm each of `objects` (as ipc_objects gives them)."""
    for kind, number, _, _ in objects:
        subprocess.run(["ipcrm", IPC_KINDS[kind][1], str(number)],
                       capture_output=True, timeout=30, check=False)
