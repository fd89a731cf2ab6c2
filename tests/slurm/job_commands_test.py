# SPDX-License-Identifier: GPL-2.0-or-later
"""icp's commands for Slurm jobs: create, vacate, requeue, restart, enable, disable, jobs, status, ipc."""

import json
import signal
import subprocess
import time

import harness
from commandcase import NEVER, CommandCase
from jobcase import leak


class Commands(CommandCase):
    def icp(self, *words, **more):
        return self.words_of(["icp", *words], **more)

    def test_create_and_status(self):
        _, job = self.start_counting("create.out")
        step = f"{job}.0"
        self.assertEqual(self.icp("create", job), ("", "", 0))
        self.wait_versions(step, 1)
        self.wait_for(lambda: self.status(job)[0]["phase"] == "idle", 20, "the round's end")
        out, err, code = self.icp("create", step, "--wait", "--max-wait", "30s")
        self.assertEqual((err, code), ("", 0))
        self.assertRegex(out, rf"^{step}: version 2: [\d,]+ pages?, [\d.]+ \w+, stopped [\d.]+ \w+, [\d.]+ \w+\n$")
        out, err, code = self.icp("create", step, "--wait", "--json")
        self.assertEqual((err, code), ("", 0))
        self.assertEqual(json.loads(out)["steps"][0]["versions"][0]["version"], 3)

        (status,) = self.status(step)
        self.assertEqual((status["name"], status["user"], status["running"], status["disabled"], status["versions_total"]),
                         (step, self.user, True, False, 3))
        self.assertEqual([v["version"] for v in status["versions"]], [3, 2, 1])
        self.assertTrue(all(v["stop_ns"] > 0 and v["bytes_written"] > 0 and v["processes"] == 1
                            for v in status["versions"]))
        self.assertEqual(status["interval_ms"], 3600_000)
        self.assertGreater(status["next_unix_ms"], time.time() * 1000)
        self.assertEqual(status["nodes"], [self.cluster.node(1)])
        self.assertEqual(len(self.icp_json("status", step, "--versions", "2")["steps"][0]["versions"]), 2)

        out, err, code = self.icp("status", job)
        self.assertEqual((err, code), ("", 0))
        self.assertRegex(out, rf"(?m)^{job}\.0: running, user {self.user}$")
        self.assertRegex(out, r"(?m)^  interval  1h$")
        self.assertRegex(out, r"(?m)^  next      20.*, in (1 h|\d+ min)")
        self.assertRegex(out, r"(?m)^ +3  20.* incremental ")
        self.assertRegex(self.icp("jobs")[0], rf"(?m)^{job}\.0 +{self.user} +running +1/1 +1h +3 +20\S+ \S+ +in ")

    def test_progress(self):
        _, job = self.start_counting("progress.out")
        with self.slow_agents():
            waiting = self.cluster.popen(["icp", "-v", "create", str(job), "--wait"], user=self.user,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.wait_for(lambda: self.status(job)[0]["phase"] == "under way", 20, "the round")
            time.sleep(1)
            self.assertIsNone(waiting.poll())
            self.assertRegex(self.icp("status", job)[0], r"(?m)^  now       under way, for ")
        out, err = waiting.communicate(timeout=30)
        self.assertEqual(waiting.returncode, 0, err)
        self.assertIn(f"icp: {job}.0: under way\n", err)
        self.assertIn("version 1:", out)

    def test_watch(self):
        _, job = self.start_counting("watch.out")
        watch = self.cluster.popen(["icp", "status", str(job), "--watch", "--json"], user=self.user,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        first = json.loads(watch.stdout.readline())
        self.assertEqual(first["steps"][0]["versions_total"], 0)
        self.icp("create", job, "--wait")
        for _ in range(20):
            seen = json.loads(watch.stdout.readline())["steps"][0]["versions_total"]
            if seen == 1:
                break
        self.assertEqual(seen, 1)
        self.cluster.kill_coordinator()
        try:
            self.assertIn("cannot reach icpctld", watch.stderr.readline())
        finally:
            self.cluster.start_coordinator()
        json.loads(watch.stdout.readline())
        watch.send_signal(signal.SIGINT)
        watch.communicate(timeout=20)  # closes the pipes, too
        self.assertEqual(watch.returncode, 0)

    def test_refusals(self):
        _, job = self.start_counting("refused.out")
        for words, user, text, code in [
                (["create", "999"], None, "create 999: Invalid job id specified", 1),
                (["status", "999"], None, "status 999: Invalid job id specified", 1),
                (["create", job], "nobody", f"create {job}: Access/permission denied", 4),
                (["restart", job], None, f"restart {job}: Job is not finished", 1),
                (["requeue", job], None, f"requeue {job}: Requested operation not supported on this system", 1)]:
            out, err, status = self.icp(*words, user=user)
            self.assertEqual((out, status), ("", code), err)
            self.assertTrue(err.startswith(f"icp: {text}"), err)
        self.assertEqual(self.icp("disable", job), ("", "", 0))
        self.assertEqual(self.icp("create", job)[1:], (
            f"icp: create {job}: Requested operation is presently disabled; icp enable {job} allows it again\n", 1))
        self.assertTrue(self.status(job)[0]["disabled"])
        self.assertEqual(json.loads(self.icp("enable", job, "--json")[0]),
                         {"operation": "enable", "job": str(job), "accepted": True})
        self.assertEqual(self.icp("create", job, "--wait")[1:], ("", 0))

    def test_what_others_see(self):
        _, job = self.start_counting("others.out")
        self.assertIn(f"{job}.0", self.icp("jobs")[0])
        self.assertIn(f"{job}.0", self.icp("jobs", user="root")[0])
        self.assertNotIn(f"{job}.0", self.icp("jobs", user="nobody")[0])
        self.assertEqual(self.icp("status", job, user="nobody")[2], 1)
        self.assertNotIn(f"{job}.0", self.icp("ipc", user="nobody")[0])

    def test_vacate_and_restart(self):
        job = self.submit_counting()
        self.assertEqual(self.icp("vacate", job, "--wait")[2], 0)
        self.wait_job(job)
        self.wait_for(lambda: self.icp("restart", job)[2] == 0, 30, "restart to be accepted")
        self.wait_text(f"job-{job}.out", rf"step {job}\.batch restarted from version 1", timeout=90)
        self.assertEqual(self.output(job).splitlines().count("1"), 1)

    def ledger(self, job):
        """What icpctld's ledger has of a job: nodes with objects."""
        return [item for item in self.icp_json("ipc", str(job)).get("ipc", []) if item["objects"]]

    def test_ipc(self):
        srun, job = self.start_srun(NEVER, *leak(4096, 77, 60), output="ipc.out")
        self.wait_text("ipc.out", "made")
        (node,) = self.wait_for(lambda: self.ledger(job), 30, "the segment in icpctld's ledger")
        self.assertEqual((node["job"], node["user"], node["node"]), (job, self.user, self.cluster.node(1)))
        (segment,) = node["objects"]
        self.assertEqual((segment["kind"], segment["key"], segment["bytes"], segment["mode"]), ("shm", 77, 4096, 0o600))
        self.assertAlmostEqual(segment["created_unix"], time.time(), delta=60)
        out, err, code = self.icp("ipc")
        self.assertEqual((err, code), ("", 0))
        self.assertRegex(out, rf"(?m)^{job}\.0 +\S+ +{self.user} +shm +0x0000004d +\d+ +4.0 KiB +0 +600 .* -$")
        self.cluster.kill_coordinator()  # its successor is told again
        self.cluster.start_coordinator()
        self.wait_for(lambda: self.ledger(job) == [node], 30, "the segment in the new ledger")
        self.sh(["scancel", job])
        srun.wait(30)
        self.wait_for(lambda: not self.ledger(job), 30, "the ledger to be empty")

    def test_who_has_segments_attached(self):
        _, job = self.start_srun(NEVER, "-n2", "perl", "-e",
                                 "use IPC::SysV qw(IPC_CREAT shmat); my $id = shmget(78, 4096, 0600|IPC_CREAT);"
                                 "shmat($id, undef, 0) or die; sleep 600", output="attached.out")

        def two():
            nodes = self.ledger(job)
            return nodes and nodes[0]["objects"][0]["attached"] == 2 and nodes[0]["objects"][0]
        segment = self.wait_for(two, 30, "two processes in the ledger")
        self.assertEqual(sorted(segment["attached_pids"]), sorted(self.step_pids(job)))
        self.assertIn(segment["creator_pid"], segment["attached_pids"])

    def test_configuration(self):
        nowhere = self.work / "nowhere.yaml"
        out, err, code = self.icp("jobs", "--config", nowhere)
        self.assertEqual((out, code), ("", 1))
        self.assertIn(f"cannot read {nowhere}: No such file", err)
        nowhere.write_text("coordinator: 127.0.0.1:1\ncoordinator_user: no-such-user\n")
        self.assertIn("there is no user no-such-user", self.icp("jobs", "--config", nowhere)[1])
        nowhere.write_text("coordinator: 127.0.0.1:1\ncoordinator_user: root\n")
        out, err, code = self.icp("jobs", env={"ICP_CONFIG": str(nowhere)})
        self.assertEqual((out, code), ("", 1))
        self.assertIn("cannot reach icpctld (127.0.0.1:1: Connection refused); is icpctld running?", err)

    def test_doctor(self):
        def look():
            done = self.cluster.run(["icp", "doctor", "--role", "node", "--json", "--dir", str(self.work)], user=self.user,
                                    check=False)
            self.assertIn(done.returncode, (1, 2), done.stderr)
            return {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        found = look()
        for name in ["config.icp_yaml", "slurm.conf", "slurm.plugstack", "slurm.plugin", "install.agent", "munge",
                     "coordinator", "coordinator.release", "coordinator.clock", "directory"]:
            self.assertEqual(found[name]["level"], "ok", found[name])
        self.assertEqual(found["slurm.kill_wait"]["level"], "warning")  # 2 s in these clusters
        self.cluster.kill_coordinator()
        try:
            self.assertIn("cannot reach icpctld", look()["coordinator"]["text"])
        finally:
            self.cluster.start_coordinator()


if __name__ == "__main__":
    harness.main()
