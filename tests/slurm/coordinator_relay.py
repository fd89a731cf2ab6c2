# SPDX-License-Identifier: GPL-2.0-or-later
"""Between agents and icpctld: a relay that reads along, so that a test can act at a moment of a round.

Frames are authenticated, not encrypted (coordinator/protocol/frame.h): what is held here and passed on later, or never, is
what a slow or broken network does. Nothing in the daemons knows of it."""

import os
import socket
import struct
import threading

import leftovers
from coordinator_peer import fields

PHASES = ["NONE", "PREPARE", "STOP", "COLLECT", "WRITE", "COMMIT", "FINISH"]
MAC = 32


def moment_of(payload, to_agent):
    """What a message is, in words: "begin", "go STOP", "done PREPARE", "failed", "abort", "hello" ..."""
    message = fields(payload)
    if to_agent:
        if 3 in message:
            return "go " + PHASES[fields(message[3][0]).get(2, [0])[0]]
        return next((name for number, name in ((1, "welcome"), (2, "begin"), (4, "abort")) if number in message), "other")
    if 2 in message:
        done = fields(message[2][0])
        return "failed" if done.get(3) else "done " + PHASES[done.get(2, [0])[0]]
    return "hello" if 1 in message else "other"


class Held:
    """A message that is not passed on until release(). A context manager: releases at its end."""

    def __init__(self, moment, job, node):
        self.moment, self.job, self.node = moment, job, node
        self.reached, self.released = threading.Event(), threading.Event()
        self.port = None  # of the agent's end

    def matches(self, moment, job, node):
        return not self.reached.is_set() and moment == self.moment and job == self.job and node == self.node

    def wait(self, timeout=30):
        """Until the message has come here."""
        if not self.reached.wait(timeout):
            raise AssertionError(f"waited {timeout} s in vain for '{self.moment}' of job {self.job} on {self.node}")
        return self

    def agent(self, pids):
        """Which of the processes has the agent's end of the connection."""
        rows = [line.split() for line in leftovers.read("/proc/net/tcp").decode().splitlines()[1:]]
        wanted = {row[9] for row in rows if row[1].endswith(f":{self.port:04X}")}
        return next(pid for pid in pids if wanted & sockets_of(pid))

    def release(self):
        self.released.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()


def sockets_of(pid):
    """Inodes of a process's sockets, as text."""
    found = set()
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        pass
    return found


class Relay:
    """Listens at self.port of 127.0.0.1; `target()` is icpctld's port."""

    def __init__(self, target):
        self.target = target
        self.lock = threading.Lock()
        self.held = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, moment, job, node):
        """Hold the next such message of the job's agent on the node (a name)."""
        held = Held(moment, job, node)
        with self.lock:
            self.held.append(held)
        return held

    def close(self):
        self.listener.close()
        for held in self.held:
            held.release()

    def _accept(self):
        while True:
            try:
                agent, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target()), timeout=5)
                server.settimeout(None)
            except OSError:
                agent.close()
                continue
            who = {}
            for source, sink, to_agent in ((agent, server, False), (server, agent, True)):
                threading.Thread(target=self._pump, args=(source, sink, to_agent, who, agent), daemon=True).start()

    def _pump(self, source, sink, to_agent, who, agent):
        try:
            head = take(source, 8)
            sink.sendall(head + take(source, struct.unpack(">I", head[4:])[0]))
            while True:
                head = take(source, 4)
                payload = take(source, struct.unpack(">I", head)[0])
                mac = take(source, MAC)
                self._look(payload, to_agent, who, agent)
                sink.sendall(head + payload + mac)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        if not to_agent:
            source.close()
            sink.close()

    def _look(self, payload, to_agent, who, agent):
        moment = moment_of(payload, to_agent)
        if moment == "hello":
            hello = fields(fields(payload)[1][0])
            who["job"], who["node"] = hello[1][0], hello[5][0].decode()
        with self.lock:
            held = next((one for one in self.held if one.matches(moment, who.get("job"), who.get("node"))), None)
            if held is None:
                return
            held.port = agent.getpeername()[1]
            held.reached.set()
        held.released.wait(120)


def take(source, length):
    data = b""
    while len(data) < length:
        more = source.recv(length - len(data))
        if not more:
            raise ConnectionError("closed")
        data += more
    return data
