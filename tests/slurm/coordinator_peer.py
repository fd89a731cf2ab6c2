# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol of icpctld (coordinator/protocol/connection.h, frame.h), written once more, for hostile peers.

Credentials are made and read by MUNGE's own commands, so that a test chooses as whom it speaks."""

import hashlib
import hmac
import os
import pwd
import socket
import struct
import subprocess

CLIENT, SERVER = b"slurm-icp client 1", b"slurm-icp server 1"


def field(number, value):
    """One protobuf field: an int as a varint, bytes as they are."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value & (1 << 64) - 1)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def fields(message):
    """{number: [values]} of a message, ints and bytes; fixed-size fields are not read."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
    while at < len(message):
        key = number()
        if key & 7 == 2:
            length = number()
            value, at = message[at:at + length], at + length
        else:
            value = number()
        found.setdefault(key >> 3, []).append(value)
    return found


def hello(job, node, nodes=1, uid=0, **more):
    """ToCoordinator with an AgentHello."""
    known = {"interval_ms": 8, "highest_version": 10}
    body = field(1, job) + field(4, uid) + field(5, node.encode()) + field(6, nodes) + field(9, b"/image")
    for name, value in more.items():
        body += field(known[name], value)
    return field(1, body)


def request(operation, job):
    """ToCoordinator with a Request."""
    return field(6, field(1, operation) + field(2, job))


class Closed(Exception):
    """icpctld has closed the connection."""


class Peer:
    """One connection. `user`: whose credentials it uses, None for root."""

    def __init__(self, cluster, user=None, timeout=20):
        self.cluster, self.user = cluster, user
        self.socket = socket.create_connection(("127.0.0.1", cluster.coordinator_port), timeout=timeout)
        self.half = os.urandom(32)
        self.buffer = b""
        self.sent = self.received = 0

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def munge(self, *command, data):
        identity = {}
        if self.user:
            identity = {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []}
        return subprocess.run([*command, f"--socket={self.cluster.munge_socket}"], input=data, capture_output=True,
                              check=True, timeout=20, **identity).stdout

    def credential(self, payload=None):
        """A credential that icpctld should take."""
        return self.munge("munge", data=CLIENT + self.half if payload is None else payload).strip()

    def raw(self, data):
        self.socket.sendall(data)

    def offer(self, credential):
        self.raw(b"SICP" + struct.pack(">I", len(credential)) + credential)

    def take(self, length):
        while len(self.buffer) < length:
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                raise Closed()
            self.buffer += data
        out, self.buffer = self.buffer[:length], self.buffer[length:]
        return out

    def is_closed(self):
        """Waits until icpctld says something (False), or closes (True)."""
        try:
            self.take(1)
            return False
        except Closed:
            return True

    def handshake(self, credential=None):
        """Both sides' credentials. Raises Closed when icpctld does not answer. Returns self."""
        self.offer(credential or self.credential())
        head = self.take(8)
        assert head[:4] == b"SICP", head
        answer = self.take(struct.unpack(">I", head[4:])[0])
        payload = self.munge("unmunge", "--metadata=/dev/null", data=answer)
        assert payload.startswith(SERVER + hashlib.sha256(self.half).digest()), "not an answer to ours"
        both = self.half + payload[len(SERVER) + 32:]
        self.to_server = hmac.new(both, b"to coordinator", "sha256").digest()
        self.to_peer = hmac.new(both, b"to peer", "sha256").digest()
        return self

    def frame(self, payload):
        data = struct.pack(">I", len(payload)) + payload
        mac = hmac.new(self.to_server, struct.pack(">Q", self.sent) + data, "sha256").digest()
        self.sent += 1
        return data + mac

    def send(self, payload):
        self.raw(self.frame(payload))

    def receive(self):
        """The next message: {field: [values]} of ToPeer."""
        length = self.take(4)
        payload = self.take(struct.unpack(">I", length)[0])
        mac = hmac.new(self.to_peer, struct.pack(">Q", self.received) + length + payload, "sha256").digest()
        assert mac == self.take(32), "icpctld's frame is not authentic"
        self.received += 1
        return fields(payload)

    def ask(self, operation, job):
        """A request's code."""
        self.send(request(operation, job))
        reply = fields(self.receive()[5][0])
        return reply.get(1, [0])[0]
