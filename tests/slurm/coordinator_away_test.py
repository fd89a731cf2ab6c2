# SPDX-License-Identifier: GPL-2.0-or-later
"""icpctld that is stopped, unreachable, misconfigured or cut off, and clocks that are set back: what jobs notice of it."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import harness
from coordinated import Coordinated

AWAY = "the coordinator cannot be reached"
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
STARTED = ["perl", "-MTime::HiRes=time", "-e", "$| = 1; printf qq(started %.3f\\n), time; sleep 5"]


def faketime_objects():
    """What ended programs under libfaketime left in /dev/shm; the names end in their pids."""
    return {path for path in pathlib.Path("/dev/shm").glob("*faketime*")
            if not os.path.exists(f"/proc/{path.name.rpartition('_')[2]}")}


class Away(Coordinated):
    def start_delay(self, *options):
        """Runs a step of five seconds. Returns (seconds from srun to the first task's start, seconds in all, result)."""
        clock, begin = time.time(), time.monotonic()
        result = self.srun("-N2", "-n2", *options, *STARTED)
        self.assertEqual(result.returncode, 0, result.stderr)
        started = min(float(text) for text in re.findall(r"started ([\d.]+)", result.stdout))
        return started - clock, time.monotonic() - begin, result

    def test_starts_are_not_delayed(self):
        """At once, so that the load of the machine is the same for all: without checkpoints, and with them."""

        def compare(what, reason):
            for _ in range(3):  # a delay that is not the machine's comes each time
                plain_start, plain_all, _ = self.start_delay()
                start, whole, result = self.start_delay("--checkpoint-interval=1s")
                if start - plain_start < 1 and whole - plain_all < 1.5:
                    break
            print(f"{what}: task after {start:.2f} s, end after {whole:.2f} s; "
                  f"without checkpoints {plain_start:.2f} and {plain_all:.2f} s", flush=True)
            self.assertLess(start - plain_start, 1, what)
            self.assertLess(whole - plain_all, 1.5, what)
            self.assertEqual(result.stderr.count("slurm-icp:"), 1, result.stderr)
            self.assertRegex(result.stderr, f"{AWAY} .*{reason}")

        icpctld = self.cluster.pids["icpctld"][0]
        os.kill(icpctld, signal.SIGSTOP)
        try:
            compare("hangs", "it does not answer")
        finally:
            os.kill(icpctld, signal.SIGCONT)
        self.cluster.kill_coordinator(signal.SIGTERM)
        try:
            compare("is not there", "Connection refused")
            with self.other_munge() as config:
                self.cluster.start_coordinator(config=config)
                compare("has another key", "its munged has another key")
                self.cluster.kill_coordinator(signal.SIGTERM)
            with socket.socket() as full:  # accepts nothing: packets for it are dropped once the queue is full
                full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                full.bind(("127.0.0.1", self.cluster.coordinator_port))
                full.listen(0)
                filling = [socket.socket() for _ in range(4)]
                for one in filling:
                    one.setblocking(False)
                    one.connect_ex(("127.0.0.1", self.cluster.coordinator_port))
                compare("drops packets", "it does not answer|No route to host")
                for one in filling:
                    one.close()
        finally:
            if "icpctld" in self.cluster.pids:
                self.cluster.kill_coordinator(signal.SIGTERM)
            self.cluster.start_coordinator()

    def other_munge(self):
        return OtherMunge(self.cluster)

    # --- the network ------------------------------------------------------------------

    def test_network_is_cut(self):
        self.cluster.kill_coordinator(signal.SIGTERM)
        network = Network(self.cluster)
        self.addCleanup(self.back_home, network)
        network.up()
        self.cluster.coordinator_host = network.there
        self.cluster.set_icp_config(self.cluster.icp_config)
        self.cluster.start_coordinator(within=["nsenter", f"--net=/run/netns/{network.name}"])
        srun, job, image = self.start_ring("cut", 20000)
        alone, alone_job = self.start_srun("-N1", "--checkpoint-interval=1s", "sleep", "100", output="alone.out")
        alone_image = f"{alone_job}.0"
        self.wait_whole(image, 1)
        self.wait_versions(alone_image, 1)

        # For five seconds: nothing is lost, nobody hears of it, and versions go on after it.
        network.cut()
        time.sleep(5)
        network.mend()
        before, alone_before = len(self.whole_versions(image)), len(self.versions(alone_image))
        self.wait_whole(image, before + 1)
        self.wait_versions(alone_image, alone_before + 1)
        self.assertNotIn(AWAY, self.text("ring.out") + self.text("alone.out"))

        # For good: said once; the step on one node goes on by itself, that on two takes no version, and none is half.
        network.cut()
        begin = time.monotonic()
        self.wait_text("ring.out", AWAY, timeout=60)
        self.wait_text("alone.out", AWAY + ".*checkpoints are taken without it", timeout=60)
        print(f"the cut was noticed after {time.monotonic() - begin:.1f} s", flush=True)
        alone_before = len(self.versions(alone_image))
        self.wait_versions(alone_image, alone_before + 2)
        self.hurry()
        self.assertEqual(srun.wait(60), 0, self.text("ring.out"))
        text = self.text("ring.out")
        self.assertEqual(self.results(text), self.answer(20000))
        self.assertEqual((text + self.text("alone.out")).count(AWAY), 2)
        self.assertEqual(list(self.work.glob(f"{image}/.v*")), [])

        # When it is back, the step that went on alone tells what it took.
        network.mend()
        self.wait_for(lambda: set(self.versions(alone_image)[:-1]) <= set(self.catalog(alone_job)), 40,
                      "the catalog to know what was taken meanwhile")
        self.sh(["scancel", alone_job])
        alone.wait(30)
        self.cluster.kill_coordinator(signal.SIGTERM)
        self.back_home(network)
        again, _ = self.start_srun("-N2", "-n2", f"--restart-dir={image}", "none", output="again.out")
        self.wait_text("again.out", f"restarted from version {self.whole_versions(image)[-1]} of", timeout=60)
        self.hurry()
        self.assertEqual(again.wait(60), 0)
        self.assertEqual(self.results(self.text("again.out")), self.answer(20000))

    def back_home(self, network):
        """icpctld where it was before, for the other tests."""
        if not network.exists:
            return
        if "icpctld" in self.cluster.pids:
            self.cluster.kill_coordinator()
        network.down()
        self.cluster.coordinator_host = "127.0.0.1"
        self.cluster.set_icp_config(self.cluster.icp_config)
        self.cluster.start_coordinator()

    # --- the clock --------------------------------------------------------------------

    def test_clock_is_set_back(self):
        """By a day, for icpctld and the agents (libfaketime), in the middle of a job's versions."""
        self.assertTrue(os.path.exists(FAKETIME), "the package faketime is not installed")
        others = faketime_objects()
        self.addCleanup(lambda: [path.unlink() for path in faketime_objects() - others])  # of the killed icpctld
        clock = self.cluster.state / "clock"
        clock.write_text("+0")
        clock.chmod(0o644)
        fake = {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
        agent = self.cluster.bin_dir / "icpstepd"
        real = agent.with_suffix(".real")
        agent.rename(real)
        agent.write_text("#!/bin/sh\n" + "".join(f"export {key}='{value}'\n" for key, value in fake.items()) +
                         f"exec {real} \"$@\"\n")
        agent.chmod(0o755)
        self.addCleanup(lambda: real.exists() and real.rename(agent))
        self.cluster.kill_coordinator(signal.SIGTERM)
        self.cluster.start_coordinator(**fake)
        srun, job, image = self.start_ring("clock")
        self.wait_whole(image, 2)
        clock.write_text("-1d")
        before = self.whole_versions(image)
        begin = time.monotonic()
        self.wait_whole(image, len(before) + 3)
        self.assertLess(time.monotonic() - begin, 12)  # its timers do not stand still for a day
        shown = self.sh(["icp", "list", image, "--node", self.cluster.node(1)]).stdout
        days = re.findall(r"^ *\d+ +(\d{4}-\d\d-\d\d) ", shown, re.M)
        self.assertGreater(len(set(days)), 1, shown)  # it was set back indeed
        self.cluster.kill_coordinator()
        self.cluster.start_coordinator(**fake)
        count = len(self.whole_versions(image))
        self.wait_whole(image, count + 1)
        self.kill_ring()
        srun.wait(30)
        real.rename(agent)
        again, _ = self.start_srun("-N2", "-n2", f"--restart-dir={image}", "none", output="again.out")
        self.wait_text("again.out", f"restarted from version {self.whole_versions(image)[-1]} of", timeout=60)
        self.hurry()
        self.assertEqual(again.wait(60), 0, self.text("again.out"))
        self.assertEqual(self.results(self.text("again.out")), self.answer())
        self.cluster.kill_coordinator(signal.SIGTERM)
        self.cluster.start_coordinator()

    # --- the service manager ------------------------------------------------------------

    def test_service_manager_is_told(self):
        """READY, RELOADING, READY again, STOPPING: to a socket of this test."""
        self.cluster.kill_coordinator(signal.SIGTERM)
        path = self.cluster.state / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(path))
            manager.settimeout(20)
            self.cluster.start_coordinator(NOTIFY_SOCKET=str(path))
            self.assertEqual(manager.recv(4096), b"READY=1")
            self.cluster.reload_coordinator()
            self.assertRegex(manager.recv(4096), rb"^RELOADING=1\b")
            self.assertEqual(manager.recv(4096), b"READY=1")
            self.assertEqual(self.cluster.kill_coordinator(signal.SIGTERM), 0)
            self.assertEqual(manager.recv(4096), b"STOPPING=1")
        path.unlink()
        self.cluster.start_coordinator()

    def test_service_unit(self):
        """systemd takes it as it is, with its programs where this build put them."""
        if shutil.which("systemd-analyze") is None:
            self.skipTest("no systemd-analyze")
        unit = self.cluster.state / "icpctld.service"
        text = (harness.BUILD / "icpctld.service").read_text()
        unit.write_text(re.sub(r"(?<==)/\S+/sbin/icpctld", str(self.cluster.bin_dir / "icpctld"), text))
        shown = subprocess.run(["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", unit],
                               capture_output=True, text=True, timeout=60, check=False)
        complaints = [line for line in shown.stderr.splitlines() if "icpctld.service" in line]
        self.assertEqual(complaints, [], shown.stderr)


class OtherMunge:
    """A munged with a key of its own, and an icp.yaml for an icpctld that uses it."""

    def __init__(self, cluster):
        self.cluster, self.directory = cluster, cluster.state / "munge2"

    def __enter__(self):
        self.directory.mkdir()
        key = self.directory / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        self.daemon = subprocess.Popen(
            ["munged", "--foreground", "--force", f"--socket={self.directory}/socket", f"--key-file={key}",
             f"--pid-file={self.directory}/pid", f"--log-file={self.directory}/log", f"--seed-file={self.directory}/seed"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.cluster.wait_for((self.directory / "socket").exists, 20, "the other munged")
        config = self.cluster.conf_dir / "other.yaml"
        text = (self.cluster.conf_dir / "icp.yaml").read_text()
        config.write_text(text.replace(str(self.cluster.munge_socket), str(self.directory / "socket")))
        return config

    def __exit__(self, *_):
        self.daemon.kill()
        self.daemon.wait()
        shutil.rmtree(self.directory)


class Network:
    """A network namespace and a cable to it, which can be cut: packets are lost then, without a word."""

    def __init__(self, cluster):
        self.name = cluster.prefix
        self.here, self.there = ("10.211.%d.%d" % (os.getpid() % 250, end) for end in (1, 2))
        self.exists = False

    def up(self):
        self.exists = True
        for command in (f"netns add {self.name}", f"link add {self.name}a type veth peer name {self.name}b netns {self.name}",
                        f"addr add {self.here}/30 dev {self.name}a", f"link set {self.name}a up",
                        f"-n {self.name} addr add {self.there}/30 dev {self.name}b", f"-n {self.name} link set lo up",
                        f"-n {self.name} link set {self.name}b up"):
            subprocess.run(["ip", *command.split()], check=True, timeout=20)

    def cut(self):
        subprocess.run(["ip", "-n", self.name, "link", "set", f"{self.name}b", "down"], check=True, timeout=20)

    def mend(self):
        subprocess.run(["ip", "-n", self.name, "link", "set", f"{self.name}b", "up"], check=True, timeout=20)

    def down(self):
        self.exists = False
        subprocess.run(["ip", "netns", "del", self.name], check=True, timeout=20)


if __name__ == "__main__":
    harness.main()
