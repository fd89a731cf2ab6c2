# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs whose node is drained, that are moved, or of which no version can be restored: they go on elsewhere, or are held."""

import json
import pathlib
import re
import socket
import urllib.request
import xml.etree.ElementTree

import harness
from commandcase import CommandCase
from coordinated import Coordinated

CONFIG = pathlib.Path(__file__).parents[2] / "config"

# Counts to 200 in tenths of a second.
COUNT = "perl -e '$| = 1; for my $i (1 .. 200) { print qq($i\\n); select undef, undef, undef, 0.1 }'"
WHOLE = [str(i) for i in range(1, 201)]


class MomentsCase(CommandCase):
    options = {"nodes": 3, "coordinator": True, "cpus": 8}

    def setUp(self):
        super().setUp()
        self.cluster.wait_idle()

    def tearDown(self):
        for state in ("RESUME", "UNDRAIN"):
            self.cluster.run(["scontrol", "update", f"NodeName={','.join(self.cluster.node_names)}", f"State={state}"], check=False)
        super().tearDown()

    @classmethod
    def icp_lines(cls, config):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            cls.metrics_port = free.getsockname()[1]
        return super().icp_lines(f"{config}metrics: localhost:{cls.metrics_port}\n")

    def metrics(self):
        """{name: value}, as Prometheus reads them."""
        with urllib.request.urlopen(f"http://localhost:{self.metrics_port}/metrics", timeout=10) as answer:
            return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", answer.read().decode(), re.M)}

    def icp(self, *words, user="root"):
        return self.cluster.run(["icp", *words], user=user, check=False, timeout=90)

    def begin(self, *options, command=COUNT, step=True):
        """A batch job that counts on the first node, as a step or as the script itself. Returns its id."""
        job = self.submit(f"{'srun ' if step else 'exec '}{command}", "--checkpoint-interval=1h", *options)
        self.wait_text(f"job-{job}.out", r"\n5\n")
        self.wait_connected(job)
        self.assertEqual(self.node_of(job), self.cluster.node(1))  # Slurm fills one after the other
        return job

    def assert_whole(self, job, restarts=1):
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        text = self.output(job)
        self.assertEqual(re.findall(r"^\d+$", text, re.M), WHOLE, text)
        self.assertEqual(text.count("restarted from version"), restarts, text)

    def runs(self, job, user="root"):
        return json.loads(self.icp("history", str(job), "--json", user=user).stdout)["runs"]

    def node_of(self, job):
        return self.job(job)["NodeList"]


class Drained(MomentsCase):
    def test_jobs_that_ask_go_on_elsewhere(self):
        before = self.metrics()["icpctld_jobs_requeued_total"]
        job = self.begin("--checkpoint-on=drain")
        stays = self.begin()
        self.cluster.run(["scontrol", "update", f"NodeName={self.cluster.node(1)}", "State=DRAIN", "Reason=repair"])
        self.wait_text(f"job-{job}.out", r"node \S+ is drained \(repair\): a version is taken, and the job requeued", 20)
        self.wait_text(f"job-{job}.out", "restarted from version", 60)
        self.assertNotEqual(self.node_of(job), self.cluster.node(1))
        self.assert_whole(job)
        self.assert_whole(stays, restarts=0)
        self.wait_for(lambda: self.runs(job)[-1]["why"], 20, "the end of the job to be known")
        first, second = self.runs(job, user=self.user)
        self.assertEqual(first["why"], f"node {self.cluster.node(1)} was drained")
        self.assertEqual((first["nodes"], first["versions"]), (self.cluster.node(1), 1))
        self.assertEqual((first["work_lost_ms"], first["ended_with_version"]), (0, True))
        self.assertEqual((second["why"], second["work_lost_ms"]), ("COMPLETED", None))
        text = self.icp("history", str(job)).stdout
        self.assertRegex(text, r"RUN +BEGAN +TIME +NODES +VERSIONS")
        self.assertRegex(text, r"2 runs, 1 version, stopped for \S+ [mu]s in all, ")
        self.assertEqual(self.icp("history", str(job), user="nobody").returncode, 1)
        pages = [self.icp("report", what, "-o", "-") for what in (str(job), self.work / f"{job}.0")]
        for page, marks in zip(pages, (1, 1)):
            self.assertEqual(page.returncode, 0, page.stderr)
            root = xml.etree.ElementTree.fromstring(page.stdout)
            self.assertEqual(page.stdout.count('class="mark"'), marks)
            self.assertEqual(root.tag, "{http://www.w3.org/1999/xhtml}html")
        self.assertIn("perl", pages[1].stdout)
        metrics = self.metrics()
        self.assertEqual(metrics["icpctld_jobs_requeued_total"], before + 1)
        self.assertGreaterEqual(metrics["icpctld_versions_total"], 1)
        self.assertGreater(metrics["icpctld_version_seconds_total"], metrics["icpctld_version_stop_seconds_total"])
        for name in ("grafana-dashboard.json", "prometheus-alerts.yml"):  # they know no metric that is not there
            named = set(re.findall(r"icpctld_\w+", (CONFIG / name).read_text()))
            self.assertTrue(named)
            self.assertLessEqual(named, set(metrics), name)

    def test_a_maintenance_reservation(self):
        job = self.begin("--checkpoint-on=drain")
        self.cluster.run(["scontrol", "create", "reservation", "ReservationName=fans", "StartTime=now", "Duration=10", "Users=root",
                          "Flags=MAINT,IGNORE_JOBS", f"Nodes={self.cluster.node(1)}"])
        try:
            self.wait_text(f"job-{job}.out", r"node \S+ is drained.*: a version is taken, and the job requeued", 40)
            self.wait_text(f"job-{job}.out", "restarted from version", 60)
            self.assertNotEqual(self.node_of(job), self.cluster.node(1))
            self.assert_whole(job)
        finally:
            self.cluster.run(["scontrol", "delete", "ReservationName=fans"], check=False)

    def test_a_command_drains_and_vacates(self):
        job, script = self.begin(), self.begin(step=False)
        srun, alone = self.start_counting("alone.out", "-w", self.cluster.node(1))
        node = self.cluster.node(1)
        denied = self.icp("drain", node, "--reason", "mine", user=self.user)
        self.assertEqual(denied.returncode, 4, denied.stderr)
        self.assertRegex(denied.stderr, r"\Aicp: drain \S+: ")
        wrong = self.icp("drain", "nosuch", "--reason", "x")
        self.assertEqual(wrong.returncode, 1)
        self.assertRegex(wrong.stderr, r"\Aicp: drain nosuch: there is no node nosuch\n")
        done = self.icp("drain", node, "--reason", "new memory", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        outcome = {one["job"]: one["requeued"] for one in json.loads(done.stdout)["jobs"]}
        self.assertEqual(outcome, {int(job): True, int(script): True, int(alone): False})
        self.assertIn("DRAIN", self.cluster.node_states()[node].upper())
        self.assertEqual(len(self.versions(f"{alone}.0")), 1)
        self.assert_whole(job)
        self.assert_whole(script)
        self.assertEqual(self.runs(job)[0]["why"], "drained: new memory")
        self.sh(["scancel", alone])
        srun.wait(30)


class DrainedRing(Coordinated):
    options = {"nodes": 3, "coordinator": True}

    def test_one_of_two_nodes(self):
        job = self.submit(f"srun {' '.join(self.ring('drained', 400, 20))}; echo end $?", "-N2", "-n2", "--checkpoint-on=drain")
        self.wait_for(lambda: re.search(rf"step {job}\.0: 2 agents", self.ctld_log()), 30, "both agents")
        node = self.cluster.node(2)
        self.assertIn("2", self.job(job)["NodeList"])
        self.cluster.run(["scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=fan"])
        try:
            self.wait_text(f"job-{job}.out", "restarted from version 1 of", 60)
            self.assertEqual(self.whole_versions(f"{job}.0"), [1])
            nodes = self.cluster.run(["scontrol", "show", "hostnames", self.job(job)["NodeList"]]).stdout.split()
            self.assertNotIn(node, nodes)
            self.hurry()
            self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
            self.assertEqual(self.results(self.output(job)), self.answer(400), self.output(job))
        finally:
            self.cluster.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], check=False)


class Moved(MomentsCase):
    def test_to_nodes_and_away(self):
        job = self.begin()
        for list_, said in (("nosuch", "there is no node nosuch"), ("n[1-2][3-4]", "is no list of nodes"), ("n[", "is no list of nodes|there is no node")):
            wrong = self.icp("move", str(job), "--nodes", list_, user=self.user)
            self.assertEqual(wrong.returncode, 1, wrong.stderr)
            self.assertRegex(wrong.stderr, said)
        self.assertEqual(self.icp("move", str(job), user="nobody").returncode, 4)
        self.assertEqual(self.job(job)["JobState"], "RUNNING")
        there = self.icp("move", str(job), "--nodes", self.cluster.node(3), "--wait", user=self.user)
        self.assertEqual(there.returncode, 0, there.stderr)
        self.wait_text(f"job-{job}.out", "restarted from version", 60)
        self.assertEqual(self.node_of(job), self.cluster.node(3))
        self.assert_whole(job)
        away = self.begin()
        self.assertEqual(self.icp("move", str(away), "--wait", user=self.user).returncode, 0)
        self.wait_text(f"job-{away}.out", "restarted from version", 60)
        self.assertNotEqual(self.node_of(away), self.cluster.node(1))
        self.assert_whole(away)
        self.assertEqual([run["why"] for run in self.runs(away)][0], f"moved away from {self.cluster.node(1)}")


class EndedByAVersion(MomentsCase):
    """Between the version that ends a run and its end the program does not run on."""
    config = "jitter: 0\nrequeue_margin: 50s\n"
    # Notes each step in a file that is not open at the version, and so is not put back: what is done twice stands there twice.
    NOTES = ("perl -e '$| = 1; for my $i (1 .. 200) { open F, qq(>>notes.$ENV{SLURM_JOB_ID}) or die; print F qq($i\n); "
             "close F; print qq($i\n); select undef, undef, undef, 0.1 }'")

    def test_nothing_is_lost_or_done_twice(self):
        limit = self.begin("-t", "1", "--checkpoint-on=timelimit", command=self.NOTES.replace("200", "450"))
        moved, vacated = self.begin(command=self.NOTES), self.begin(command=self.NOTES)
        slurm, script = (self.begin("--checkpoint-on=preempt", command=self.NOTES, step=step) for step in (True, False))
        self.assertEqual(self.icp("move", str(moved), "--wait", user=self.user).returncode, 0)
        self.assertEqual(self.icp("vacate", str(vacated), "--wait", user=self.user).returncode, 0)
        for job in (slurm, script):
            self.cluster.run(["scontrol", "requeue", str(job)])
        self.wait_job(vacated)
        self.wait_for(lambda: self.runs(vacated)[0]["ended_unix_ms"], 20, "its end to be known")
        vacated_run = self.runs(vacated)[0]
        self.assertEqual((vacated_run["why"], vacated_run["work_lost_ms"]), ("vacated", 0), vacated_run)
        self.wait_for(lambda: self.icp("restart", str(vacated), user=self.user).returncode == 0, 30, "the job to be restarted")
        for job, last in ((moved, 200), (vacated, 200), (slurm, 200), (script, 200), (limit, 450)):
            self.assertEqual(self.wait_job(job, timeout=150), "COMPLETED", self.output(job))
            self.assertIn("restarted from version 1", self.output(job))
            notes = self.text(f"notes.{job}").split()
            self.assertEqual(notes, [str(i) for i in range(1, last + 1)], self.output(job))
            if job == vacated:  # the same run to Slurm
                continue
            first = self.runs(job)[0]
            self.assertEqual((first["work_lost_ms"], first["ended_with_version"]), (0, True), first)
        self.wait_for(lambda: all(self.runs(job)[-1]["why"] == "COMPLETED" for job in (moved, slurm, limit)), 30, "the ends to be known")
        self.assertEqual(self.metrics()["icpctld_work_lost_seconds_total"], 0)
        rest = self.icp("report", str(slurm), "-o", "-").stdout
        self.assertEqual(xml.etree.ElementTree.fromstring(rest).tag, "{http://www.w3.org/1999/xhtml}html")


class Hangs(MomentsCase):
    config = "jitter: 0\nhang_after: 3s\n"
    # Counts to 30, and waits for something that never comes; the second of two processes lives on for it.
    STUCK = ("perl -e '$| = 1; pipe R, W; fork; for my $i (1 .. 30) { print qq($i\n); select undef, undef, undef, 0.1 } "
             "sysread R, $x, 1'")
    SAID = r"slurm-icp: step \S+: it may hang: none of its processes has used processor time or done input or output for \d+s"

    def test_reported_once_and_nothing_else(self):
        busy, stuck = self.begin("--checkpoint-interval=1s"), self.begin("--checkpoint-interval=1s", command=self.STUCK)
        suspended = self.begin()
        self.cluster.run(["scontrol", "suspend", str(suspended)])
        self.wait_text(f"job-{stuck}.out", self.SAID, 40)
        self.wait_for(lambda: self.runs(stuck)[0]["hung_unix_ms"], 10, "the history to have it")
        self.assertRegex(self.icp("history", str(stuck)).stdout, "does nothing since")
        self.cluster.run(["scontrol", "resume", str(suspended)])
        for job in (busy, suspended):
            self.assertEqual(self.wait_job(job, timeout=60), "COMPLETED", self.output(job))
            self.assertNotRegex(self.output(job), self.SAID)
            self.assertEqual(self.runs(job)[0]["hung_unix_ms"], 0)
        self.assertEqual(len(re.findall(self.SAID, self.output(stuck))), 1)
        self.assertEqual(self.job(stuck)["JobState"], "RUNNING")
        self.assertEqual(self.metrics()["icpctld_steps_hung_total"], 1)
        self.assertRegex(self.cluster.coordinator_log.read_text(), r"it may hang")


class HangsAndIsMoved(MomentsCase):
    config = "jitter: 0\nhang_after: 3s\nhang_action: requeue\n"

    def test_goes_on_elsewhere_once(self):
        # Waits as long as it is on the first node, as for a device that does not answer.
        bad = self.cluster.node(1)
        command = ("perl -e '$| = 1; for my $i (1 .. 200) { print qq($i\n); select undef, undef, undef, 0.1; "
                   "while ($i == 20 && -e qq(stuck)) { select undef, undef, undef, 60 } }'")
        (self.work / "stuck").touch()
        job = self.begin(command=command)
        self.wait_text(f"job-{job}.out", rf"a version is taken, and the job requeued, to run without {bad}", 40)
        (self.work / "stuck").unlink()
        self.wait_text(f"job-{job}.out", "restarted from version 1 of", 60)
        self.assertNotEqual(self.node_of(job), bad)
        self.wait_text(f"job-{job}.out", "it hung in its last run, too: it is not requeued", 60)  # it sleeps for a minute
        first = self.runs(job)[0]
        self.assertRegex(first["why"], r"hung for \d+s")
        self.assertEqual(first["work_lost_ms"], 0)
        self.assert_whole(job)


class CannotRestart(MomentsCase):
    config = "jitter: 0\nrestart_attempts: 2\nexclude_failed_nodes: yes\n"

    def test_the_job_is_held_and_can_be_released(self):
        job = self.begin()
        self.assertEqual(self.icp("create", str(job), "--wait", user=self.user).returncode, 0)
        image = self.work / f"{job}.0"
        manifests = list(image.glob("v*/*/manifest.icp"))
        self.assertEqual(len(manifests), 1)
        whole = manifests[0].read_bytes()
        manifests[0].write_bytes(whole[:-9])
        self.cluster.run(["scontrol", "requeue", str(job)])
        self.wait_for(lambda: "held" in self.job(job)["Reason"].lower(), 90, "the job to be held")
        facts = self.job(job)
        self.assertEqual(facts["Restarts"], "3")
        self.assertIn("Comment=slurm-icp: cannot restart: ", self.cluster.run(["scontrol", "show", "job", job]).stdout)
        self.assertIn(self.cluster.node(1), facts["ExcNodeList"])
        runs = self.runs(job)
        self.assertEqual([run["restart_failed"] for run in runs], [False, True, True])
        self.assertNotEqual(runs[1]["nodes"], runs[2]["nodes"])
        metrics = self.metrics()
        self.assertEqual((metrics["icpctld_restarts_failed_total"], metrics["icpctld_jobs_held_total"]), (2, 1))
        self.assertEqual(runs[1]["work_lost_ms"], None)
        manifests[0].write_bytes(whole)
        self.cluster.run(["scontrol", "release", str(job)], user=self.user)
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        self.assertEqual(re.findall(r"^\d+$", self.output(job), re.M)[-1], "200")


if __name__ == "__main__":
    harness.main()
