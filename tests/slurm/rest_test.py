# SPDX-License-Identifier: GPL-2.0-or-later
"""The requests of icp over HTTP: a local socket, and TCP with MUNGE credentials."""

import http.client
import json
import socket

import harness
from commandcase import CommandCase

ROOT = "/slurm-icp/v1/"
# Run as somebody: asks over the local socket, prints status and body.
ASK = """import http.client, json, socket, sys
c = http.client.HTTPConnection('localhost', timeout=30)
c.sock = socket.socket(socket.AF_UNIX); c.sock.connect(sys.argv[1])
c.request(sys.argv[2], sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None)
a = c.getresponse(); print(json.dumps([a.status, json.loads(a.read())]))"""


class Rest(CommandCase):
    @classmethod
    def icp_lines(cls, config):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            cls.port = free.getsockname()[1]
        cls.path = f"{cls.cluster.log_dir}/rest.sock"
        return super().icp_lines(f"{config}rest: {cls.path}\nrest_listen: localhost:{cls.port}\n")

    def ask(self, method, path, body=None, user="root"):
        words = ["/usr/bin/python3", "-c", ASK, self.path, method, ROOT + path, *([json.dumps(body)] if body is not None else [])]
        status, answer = json.loads(self.cluster.run(words, user=user, cwd="/").stdout)
        return status, answer

    def over_tcp(self, path, token=None):
        connection = http.client.HTTPConnection("localhost", self.port, timeout=30)
        connection.request("GET", ROOT + path, headers={"X-SLURM-USER-TOKEN": token} if token else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def test_a_job_from_version_to_end(self):
        job = self.submit_counting()
        status, answer = self.ask("GET", f"job/{job}", user=self.user)
        self.assertEqual((status, len(answer["steps"]), answer["errors"]), (200, 1, []))
        self.assertEqual(self.ask("POST", f"job/{job}/create", {"wait": True}, user=self.user)[0], 200)
        self.assertEqual(self.ask("GET", f"job/{job}?versions=1")[1]["steps"][0]["versions_total"], 1)
        status, answer = self.ask("GET", f"job/{job}/history", user=self.user)
        self.assertEqual([(run["restarts"], run["versions"]) for run in answer["runs"]], [(0, 1)])
        for path in ("", "/history", "/create"):  # somebody else's
            status, answer = self.ask("POST" if path == "/create" else "GET", f"job/{job}{path}", user="nobody")
            self.assertIn(status, (403, 404), answer)
            self.assertNotIn("image", json.dumps(answer))
        self.assertEqual(self.ask("GET", "jobs", user="nobody")[1]["steps"], [])
        self.assertEqual(self.ask("POST", f"job/{job}/disable", user=self.user)[0], 200)
        status, answer = self.ask("POST", f"job/{job}/create", {"wait": True}, user=self.user)
        self.assertEqual((status, answer["errors"][0]["error_number"]), (409, 2037))
        self.assertEqual(self.ask("POST", f"nodes/{self.cluster.node(1)}/drain", {"reason": "x"}, user=self.user)[0], 403)
        self.assertEqual(self.ask("POST", "nodes/nosuch/drain", {"reason": "x"})[1]["errors"][0]["description"], "there is no node nosuch")
        self.assertEqual(self.ask("POST", f"job/{job}/create", {"what": 1})[0], 400)
        self.assertEqual(self.ask("GET", "job/4000000")[0], 404)
        self.sh(["scancel", job])

    def test_tcp_wants_a_credential(self):
        status, answer = self.over_tcp("jobs")
        self.assertEqual(status, 401)
        self.assertIn("X-SLURM-USER-TOKEN is missing", answer["errors"][0]["description"])
        make = ["munge", "-n", "-S", str(self.cluster.munge_socket)]
        token = self.cluster.run(make, user=self.user).stdout.strip()
        self.assertEqual(self.over_tcp("jobs", token)[0], 200)
        self.assertEqual(self.over_tcp("jobs", token)[0], 401)  # once
        self.assertEqual(self.over_tcp("jobs", "MUNGE:forged:")[0], 401)
        other = self.cluster.run(["munge", "-s", "for another", "-S", str(self.cluster.munge_socket)], user=self.user).stdout.strip()
        self.assertIn("made for something else", self.over_tcp("jobs", other)[1]["errors"][0]["description"])
        job = self.submit_counting()
        for user, found in ((self.user, 200), ("nobody", 404), ("root", 200)):
            self.assertEqual(self.over_tcp(f"job/{job}", self.cluster.run(make, user=user, cwd="/").stdout.strip())[0], found, user)
        self.sh(["scancel", job])

    def test_what_is_no_request(self):
        for text in (b"\0" * 100, b"GET " + b"/" * 100000 + b" HTTP/1.1\r\n\r\n", b"GET /x HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(self.path)
                peer.settimeout(15)
                try:
                    peer.sendall(text)
                    peer.recv(1000)
                except OSError:
                    pass  # hung up on
        silent = [socket.socket(socket.AF_UNIX) for _ in range(100)]
        for one in silent:
            one.connect(self.path)
        self.assertEqual(self.ask("GET", "jobs")[0], 200)
        for one in silent:
            one.close()


if __name__ == "__main__":
    harness.main()
