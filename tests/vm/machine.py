# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU machine that boots a kernel with this machine's own root: read-only over 9p, under a tmpfs.

Every installed program is there, and what the guest writes is gone with it. Software emulation: it works everywhere, but
times in it mean little.
"""
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import threading
import time

from kernels import Unavailable

BUSYBOX = "/bin/busybox"
QEMU = "qemu-system-x86_64"
LONGEST = 4 * 3600  # seconds, whatever it does
# PTI would flush the TLB at each system call, and hide a missing flush of ours.
COMMAND_LINE = ("console=ttyS0 panic=-1 oops=panic mitigations=off nopti rdinit=/init loglevel=5 "
                "printk.devkmsg=on no_timer_check nowatchdog rcupdate.rcu_cpu_stall_suppress=1")

INIT = r"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /host /over /root /keep
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module" || echo "init: cannot load $module"; done
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o ro,cache=loose,$options host /host || exec sh
mount -t tmpfs -o size=75% tmpfs /over
mkdir /over/up /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/up,workdir=/over/work overlay /root || exec sh
# What the guest works with may lie where it needs a file system of its own.
keep() { mkdir -p /keep$1; mount --bind /host$1 /keep$1; }
keep "$ICP_SOURCES"
keep "$ICP_BUILD"
for dir in /tmp /run /dev /proc /sys /var/tmp; do mkdir -p /root$dir; done
mount -t tmpfs tmpfs /root/tmp
mount -t tmpfs tmpfs /root/run
mount -t tmpfs tmpfs /root/var/tmp
mkdir -p "/root$ICP_SOURCES" "/root$ICP_BUILD" /root/run/results /root/run/module
mount --bind "/keep$ICP_SOURCES" "/root$ICP_SOURCES"
mount --bind "/keep$ICP_BUILD" "/root$ICP_BUILD"
mount -t 9p -o $options results /root/run/results
mount -t 9p -o ro,cache=loose,$options module /root/run/module
exec </dev/ttyS1 >/dev/ttyS1 2>&1
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
cp /bin/busybox /root/run/busybox
exec switch_root /root /bin/bash "$ICP_SOURCES/tests/vm/guest" $ICP_WORDS
"""


def check_host():
    """Raises Unavailable when something is not installed."""
    if not shutil.which(QEMU):
        raise Unavailable(f"{QEMU} is missing: apt install --no-install-recommends qemu-system-x86")
    if not os.path.exists(BUSYBOX):
        raise Unavailable(f"{BUSYBOX} is missing: apt install busybox-static")
    linked = subprocess.run(["ldd", BUSYBOX], capture_output=True, text=True, check=False)
    if "not a dynamic executable" not in linked.stdout + linked.stderr:
        raise Unavailable(f"{BUSYBOX} is not static: apt install busybox-static")
    if os.geteuid() != 0:
        raise Unavailable("the guest sees this machine's files as root does: run as root")


def cpio_entry(name, data, mode, number):
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def initrd(kernel, environment):
    files = [(folder, b"", 0o040755) for folder in ("bin", "modules", "proc", "sys", "dev")]
    files.append(("bin/busybox", pathlib.Path(BUSYBOX).read_bytes(), 0o100755))
    text = INIT.replace("\n", "\n" + "".join(f"export {key}='{value}'\n" for key, value in environment.items()), 1)
    files.append(("init", text.encode(), 0o100755))
    for file in kernel.module_files:
        files.append((f"modules/{file.name}", file.read_bytes(), 0o100644))
    parts = [cpio_entry(name, data, mode, number + 1) for number, (name, data, mode) in enumerate(files)]
    return b"".join(parts) + cpio_entry("TRAILER!!!", b"", 0, 0)


def processor_time():
    """Seconds, of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Machine:
    """Boots, runs tests/vm/guest with the given words, and ends. Not meant to be used twice."""

    def __init__(self, kernel, module_dir, results, sources, build, memory_mib=2048, cpus=2):
        self.kernel, self.results = kernel, pathlib.Path(results)
        self.module_dir, self.sources, self.build = module_dir, sources, build
        self.memory_mib, self.cpus = memory_mib, cpus

    def run(self, words, silence, on_line, kernel_options="", environment=None):
        """Calls on_line for each line of the guest. Returns (seconds, seconds of processor time,
        ended by itself).

        A machine that says nothing for `silence` seconds is killed: how long a test takes here depends on what else
        this machine does, but one that hangs is silent."""
        self.results.mkdir(parents=True, exist_ok=True)
        image = self.results / "initrd"
        image.write_bytes(initrd(self.kernel, {"ICP_SOURCES": self.sources, "ICP_BUILD": self.build,
                                               "ICP_WORDS": " ".join(words), **(environment or {})}))
        share = "security_model=passthrough,multidevs=remap"
        command = [
            QEMU, "-accel", "tcg,thread=multi", "-smp", str(self.cpus), "-cpu", "max,erms=off", "-m", str(self.memory_mib),
            "-kernel", self.kernel.image, "-initrd", image, "-append", f"{COMMAND_LINE} {kernel_options}",
            "-nodefaults", "-display", "none", "-no-reboot",
            "-serial", f"file:{self.results}/console", "-serial", "stdio",
            "-virtfs", f"local,path=/,mount_tag=host,readonly=on,{share}",
            "-virtfs", f"local,path={self.results},mount_tag=results,{share}",
            "-virtfs", f"local,path={self.module_dir},mount_tag=module,readonly=on,{share}",
        ]
        begin, used = time.monotonic(), processor_time()
        # `timeout` outlives us: no machine stays when the test is killed.
        with subprocess.Popen(["timeout", "-k", "5", str(LONGEST), *map(str, command)], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as qemu:
            try:
                for line in self._lines(qemu, silence):
                    on_line(line)
            except BaseException:
                qemu.terminate()
                raise
            ended = qemu.wait() == 0
        image.unlink()
        return time.monotonic() - begin, processor_time() - used, ended

    @staticmethod
    def _lines(qemu, silence):
        """Lines as they come; ends qemu when there is none for `silence` seconds."""
        timer = threading.Timer(silence, qemu.terminate)
        timer.start()
        try:
            for line in qemu.stdout:
                timer.cancel()
                timer = threading.Timer(silence, qemu.terminate)
                timer.start()
                yield line.rstrip("\r\n")
        finally:
            timer.cancel()

    def console(self):
        try:
            return (self.results / "console").read_text(errors="replace")
        except OSError:
            return ""


if __name__ == "__main__":
    sys.exit("used by tests/vm/run")
