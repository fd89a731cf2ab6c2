# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile and broken peers of a real icpctld: they are dropped, and nobody else notices."""

import os
import select
import socket
import struct
import time

import harness
import leftovers
from coordinated import Coordinated
from coordinator_peer import CLIENT, Closed, Peer, field, hello

ABLE, CREATE, DISABLE, ERROR, VACATE, STATUS = 1, 2, 3, 5, 8, 9
DENIED, INVALID_JOB = 2002, 2017
HANDSHAKE = FIRST_WORD = 10  # seconds
COUNT = ["perl", "-e", "$| = 1; for my $i (1 .. 6000) { print qq($i\\n); select undef, undef, undef, 0.05 }"]


class Hostile(Coordinated):
    options = {"nodes": 1, "coordinator": True}
    other = "nobody"  # a user besides root and the jobs'

    def setUp(self):
        super().setUp()
        self.pid = self.cluster.pids["icpctld"][0]

    def tearDown(self):
        """icpctld lives, is the same one, and answers."""
        self.assertTrue(self.cluster.alive("icpctld"), self.cluster.log_tail("icpctld"))
        self.assertEqual(self.cluster.pids["icpctld"][0], self.pid)
        with Peer(self.cluster) as peer:
            self.assertEqual(peer.handshake().ask(ABLE, 999_999), INVALID_JOB)
        super().tearDown()

    def peer(self, user=None):
        peer = Peer(self.cluster, user)
        self.addCleanup(peer.close)
        return peer

    def resident(self):
        """VmRSS of icpctld, KiB."""
        status = leftovers.read(f"/proc/{self.pid}/status").decode()
        return int(status.split("VmRSS:")[1].split()[0])

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def agent(self, job, node="x1", **more):
        peer = self.peer().handshake()
        peer.send(hello(job, node, **more))
        return peer

    # --- handshakes ------------------------------------------------------------

    def test_what_is_no_handshake(self):
        long = b"M" * 9000
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"SICP" + struct.pack(">I", 8193) + long,
                     b"SICP" + struct.pack(">I", 0xffffffff), b"SICP\0\0\0\0", b"\0" * 64, b"XICP\0\0\0\5MUNGE",
                     b"SICP" + struct.pack(">I", 9) + b"MUNGE:\0a:", b"SICP" + struct.pack(">I", 16) + b"MUNGE:AAAAAAAAA:"):
            with self.subTest(data=data[:20]):
                peer = self.peer()
                peer.raw(data)
                begin = time.monotonic()
                self.assertTrue(peer.is_closed())
                self.assertLess(time.monotonic() - begin, 5)

    def test_replayed_credential(self):
        first = self.peer()
        credential = first.credential()
        self.assertEqual(first.handshake(credential).ask(ABLE, 999_999), INVALID_JOB)
        second = self.peer()
        second.half = first.half
        with self.assertRaises(Closed):
            second.handshake(credential)

    def test_credentials_made_for_something_else(self):
        for payload in (b"", b"slurm job credential", CLIENT, CLIENT + b"x" * 31, CLIENT + b"x" * 33, b"x" * 50):
            with self.subTest(payload=payload[:20]):
                peer = self.peer()
                with self.assertRaises(Closed):
                    peer.handshake(peer.credential(payload))

    def test_silent_peers_are_dropped(self):
        before = self.descriptors()
        begin = time.monotonic()
        silent, half, handshaken, answered = self.peer(), self.peer(), self.peer(self.other), self.peer(self.other)
        half.raw(b"SICP\0")
        handshaken.handshake()
        self.assertEqual(answered.handshake().ask(ABLE, 999_999), INVALID_JOB)
        for peer in (silent, half, handshaken, answered):
            self.assertTrue(peer.is_closed())
            self.assertGreater(time.monotonic() - begin, HANDSHAKE - 1)
        self.assertLess(time.monotonic() - begin, HANDSHAKE + FIRST_WORD)
        self.wait_for(lambda: self.descriptors() <= before, 10, "descriptors to be closed")

    # --- frames ------------------------------------------------------------------

    def test_frames_that_are_not_authentic(self):
        for what in ("flipped", "repeated", "foreign key", "too long"):
            with self.subTest(what=what):
                peer = self.peer().handshake()
                frame = peer.frame(hello(1_000_001, "x1"))
                if what == "flipped":
                    peer.raw(frame[:10] + bytes([frame[10] ^ 1]) + frame[11:])
                elif what == "repeated":
                    peer.raw(frame)
                    self.assertIn(1, peer.receive())  # welcome
                    peer.raw(frame)
                elif what == "foreign key":
                    peer.to_server = os.urandom(32)
                    peer.send(hello(1_000_001, "x1"))
                else:
                    peer.raw(struct.pack(">I", (1 << 20) + 1))
                self.assertTrue(peer.is_closed())

    def test_users_may_say_less_than_agents(self):
        peer = self.peer(self.other).handshake()
        peer.raw(struct.pack(">I", (16 << 10) + 1))
        self.assertTrue(peer.is_closed())

    def test_messages_that_are_none(self):
        for payload in (b"\xff" * 20, b"", field(15, b"unknown"), field(2, field(1, 1)), b"\x0a\x7f"):
            with self.subTest(payload=payload):
                peer = self.peer().handshake()
                peer.send(payload)
                self.assertTrue(peer.is_closed())

    # --- who may do what ------------------------------------------------------------

    def test_agents_are_root(self):
        peer = self.peer(self.user).handshake()
        peer.send(hello(1_000_002, "x1", uid=0))
        self.assertTrue(peer.is_closed())
        self.assertIn("wants to be an agent and is not root", self.ctld_log())

    def test_hellos(self):
        first = self.agent(1_000_003, nodes=2)
        self.assertIn(1, first.receive())
        for wrong in (self.agent(1_000_003, "x2", nodes=2, uid=4711), self.agent(1_000_003, "x2", nodes=3),
                      self.agent(0), self.agent(1_000_004, interval_ms=1 << 63),
                      self.agent(1_000_004, highest_version=0xffffffff)):
            self.assertTrue(wrong.is_closed())
        first.send(hello(1_000_003, "x1", nodes=2))  # says twice who it is
        self.assertTrue(first.is_closed())

    def test_another_users_job_is_none_of_ones_business(self):
        srun, job = self.start_srun("-N1", "--checkpoint-interval=1s", *COUNT, output="count.out")
        self.wait_for(lambda: f"step {job}.0: version 1" in self.ctld_log(), 30, self.ctld_log)
        for operation in (ABLE, CREATE, DISABLE, ERROR, VACATE):
            peer = self.peer(self.other).handshake()
            self.assertEqual(peer.ask(operation, job), DENIED, operation)
        self.assertEqual(self.peer(self.other).handshake().ask(STATUS, job), INVALID_JOB)  # not even that it is there
        self.assertEqual(self.peer(self.user).handshake().ask(ABLE, job), 0)
        self.assertEqual(self.peer().handshake().ask(ABLE, job), 0)
        # An agent's word on who owns a job does not count against Slurm's.
        liar = self.agent(job, "x1", uid=65534)
        self.assertTrue(liar.is_closed())
        self.sh(["scancel", job])
        srun.wait(30)

    # --- floods ------------------------------------------------------------------------

    def test_silent_connections_do_not_stop_rounds(self):
        srun, job = self.start_srun("-N1", "--checkpoint-interval=0.5s", *COUNT, output="flood.out")
        image = f"{job}.0"
        self.wait_versions(image, 2)
        before, at_first = self.resident(), self.descriptors()
        sockets = [socket.create_connection(("127.0.0.1", self.cluster.coordinator_port)) for _ in range(300)]
        for one in sockets[::3]:
            one.sendall(b"SICP\0\0")
        count = len(self.versions(image))
        begin = time.monotonic()
        self.wait_versions(image, count + 5, timeout=30)
        took = time.monotonic() - begin
        after = self.resident()
        print(f"5 versions in {took:.1f} s beside 300 silent connections; "
              f"icpctld: {before} KiB before, {after} KiB with them")
        self.assertLess(after - before, 300 * 64)
        self.wait_for(lambda: self.descriptors() <= at_first + 2, 30, "the silent ones to be dropped")
        for one in sockets:
            one.close()
        self.sh(["scancel", job])
        srun.wait(30)
        self.assertNotIn("took longer than", self.ctld_log())

    def test_one_user_has_so_many_connections(self):
        peers = [self.peer(self.other).handshake() for _ in range(102)]
        self.assertTrue(peers[-1].is_closed())
        self.assertEqual(peers[50].ask(ABLE, 999_999), INVALID_JOB)
        self.assertEqual(self.peer(self.user).handshake().ask(ABLE, 999_999), INVALID_JOB)

    def test_one_user_asks_so_often(self):
        """300 questions at once: they are answered by and by, and others' at once."""
        answered = 0
        peers = [self.peer(self.other).handshake() for _ in range(10)]
        begin = time.monotonic()
        while time.monotonic() - begin < 3:
            for peer in peers:
                peer.send(field(6, field(1, STATUS) + field(2, 0)))
            if answered >= 100:  # its burst is over
                asked = time.monotonic()
                self.assertEqual(self.peer(self.user).handshake().ask(ABLE, 999_999), INVALID_JOB)
                self.assertLess(time.monotonic() - asked, 1)
            for peer in peers:
                peer.receive()
                answered += 1
        self.assertGreaterEqual(answered, 100)
        self.assertLess(answered, 100 + 10 * 6)

    def test_one_address_has_so_many_unknown_connections(self):
        peers = [self.peer() for _ in range(1110)]
        self.assertTrue(peers[0].is_closed())  # the oldest
        self.assertEqual(self.peer(self.user).handshake().ask(ABLE, 999_999), INVALID_JOB)  # and nobody is kept away
        newest = select.poll()
        newest.register(peers[-1].socket, select.POLLIN)
        self.assertEqual(newest.poll(0), [], "the newest stays")

    def test_memory_stays(self):
        def hundred():
            for i in range(100):
                with Peer(self.cluster) as peer:
                    if i % 2:
                        peer.raw(b"SICP" + struct.pack(">I", 8000) + b"x" * 8000)
                        peer.is_closed()
                    else:
                        peer.handshake()
                        peer.raw(struct.pack(">I", 1 << 20) + b"x" * 300_000)  # and no more
        hundred()
        before = self.resident()
        for _ in range(4):
            hundred()
        after = self.resident()
        print(f"icpctld: {before} KiB after 100 broken connections, {after} KiB after 500")
        self.assertLess(after - before, 4096)


if __name__ == "__main__":
    harness.main()
