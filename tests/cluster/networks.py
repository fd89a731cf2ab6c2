# SPDX-License-Identifier: GPL-2.0-or-later
"""Nodes in network and UTS namespaces of their own, so that their addresses and names differ.

    networks.leave_host()            # this process, and what it starts, in a network namespace of its own
    networks.Node(1).command("n1")   # words before a command that make it run on node 1, in namespaces of its own

A bridge in the process's namespace joins the nodes. Nothing has a name outside of it: with the last process and
descriptor all is gone, however that ends.
"""

import ctypes
import os
import subprocess

CLONE_NEWNET = 0x40000000
BRIDGE = "nodes"
HUB = "10.77.0.254"  # where slurmctld, icpctld and commands are

_libc = ctypes.CDLL(None, use_errno=True)
_left = False


def address(i):
    """The address of node `i`, counted from 1."""
    return f"10.77.0.{i}"


def own_name(name):
    """Words to put before a command: its host is called `name`."""
    return ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]


def _call(name, *arguments):
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _ip(*words):
    subprocess.run(["ip", *words], check=True, timeout=20, stdin=subprocess.DEVNULL)


def leave_host():
    """Move this thread into a network namespace with a bridge. Once; call it before threads are started."""
    global _left
    if _left:
        return
    _call("unshare", CLONE_NEWNET)
    _left = True
    _ip("link", "set", "lo", "up")
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{HUB}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")


class Node:
    """The network namespace of one node, kept by a descriptor until close()."""

    def __init__(self, i):
        self.link = f"node{i}"
        hub = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("unshare", CLONE_NEWNET)
            try:
                self.fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                _ip("link", "set", "lo", "up")
                _ip("link", "add", "eth0", "type", "veth", "peer", "name", self.link,
                    "netns", f"/proc/{os.getpid()}/fd/{hub}")
                _ip("addr", "add", f"{address(i)}/24", "dev", "eth0")
                _ip("link", "set", "eth0", "up")
            finally:
                _call("setns", hub, CLONE_NEWNET)
        finally:
            os.close(hub)
        _ip("link", "set", self.link, "master", BRIDGE, "up")

    def command(self, name):
        """Words to put before a command: it runs on the node, which calls itself `name`."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.fd}", *own_name(name)]

    def cut(self, down=True):
        """Cut the node off, or join it again."""
        _ip("link", "set", self.link, "down" if down else "up")

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            subprocess.run(["ip", "link", "del", self.link], timeout=20, check=False, capture_output=True)
