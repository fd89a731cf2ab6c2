# SPDX-License-Identifier: GPL-2.0-or-later
"""Which version a step goes on from, and what of the step belongs to it: damaged ones and older ones, suspended steps,
standard input, tasks that had ended, batch scripts in another job, processors."""

import os
import re
import time

import harness
import leftovers
from jobcase import JobCase, PERL, numbers

# Says what it reads, slowly.
READER = """import os, time
for line in iter(lambda: os.read(0, 7), b""):
    print("got", line.decode().strip(), flush=True)
    time.sleep(0.1)
print("end of input", flush=True)
"""
# Which processors it may use, again and again.
WHERE = """import os, time
for i in range(150):
    print("on", sorted(os.sched_getaffinity(0)), flush=True)
    time.sleep(0.1)
"""


def damage(version):
    """Overwrite some of the pages that a version has stored itself."""
    stored = max(version.glob("*/*.bin"), key=lambda path: path.stat().st_size)
    with open(stored, "r+b") as file:
        file.seek(stored.stat().st_size // 2)
        file.write(os.urandom(4096))


class VersionChoice(JobCase):
    def last(self, image):
        return self.work / image / f"v{self.versions(image)[-1]:06d}"

    def test_a_damaged_version_is_passed_over_and_said(self):
        image = self.killed_run(PERL, 1, versions=3)
        number = self.versions(image)[-1]
        damage(self.last(image))
        result = self.srun(f"--restart-dir={image}", "none")
        self.assertEqual(result.returncode, 5, result.stderr)
        self.assertRegex(result.stderr, rf"step \d+\.0: version {number} of .*{image} cannot be restarted: .+")
        self.assertIn(f"restarted from version {number - 1} of", result.stderr)
        again = numbers(result.stdout)
        self.assertEqual(again, list(range(again[0], 61)))

    def test_a_version_without_manifest_is_passed_over_and_said(self):
        image = self.killed_run(PERL, 1, versions=3)
        number = self.versions(image)[-1]
        (manifest,) = self.last(image).glob("*/manifest.icp")
        manifest.write_bytes(manifest.read_bytes()[:-9])
        result = self.srun(f"--restart-dir={image}", "none")
        self.assertEqual(result.returncode, 5, result.stderr)
        self.assertRegex(result.stderr, rf"version {number}: .+")
        self.assertIn(f"restarted from version {number - 1} of", result.stderr)

    def test_a_version_is_named(self):
        image = self.killed_run(PERL, 1, versions=3)
        for name, number in ((f"{image}:1", 1), (f"{image}/v000002", 2)):
            result = self.srun(f"--restart-dir={name}", "none")
            self.assertEqual(result.returncode, 5, result.stderr)
            self.assertIn(f"restarted from version {number} of", result.stderr)
        result = self.srun(f"--restart-dir={image}:99", "none")
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stderr, r"cannot restart: .* holds no complete version 99; the latest one is \d+")
        number = self.versions(image)[-1]
        damage(self.last(image))
        result = self.srun(f"--restart-dir={image}:{number}", "none")
        self.assertNotEqual(result.returncode, 0)
        self.assertEqual(result.stdout, "")
        self.assertNotIn("restarted from", result.stderr)

    def test_a_directory_that_is_not_there_is_refused_at_submission(self):
        for option in ("/nowhere/12.0", "/nowhere/12.0:3"):
            result = self.sh(["sbatch", f"--restart-dir={option}", "--wrap", "true"], check=False)
            self.assertNotEqual(result.returncode, 0)
            self.assertIn(f"cannot restart: {option}: No such file or directory", result.stderr)
        self.assertEqual(self.cluster.run(["squeue", "-h"]).stdout, "")

    def test_after_a_requeue_a_restarted_step_goes_on_from_its_own_versions(self):
        image = self.killed_run(["perl", "-e", "$| = 1; for my $i (1 .. 90) { print qq($i\\n); "
                                 "select undef, undef, undef, 0.1 }"], 1)
        job = self.submit(f"srun --restart-dir={image} none", "--checkpoint-interval=1s")
        self.wait_versions(f"{job}.0", 2)
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED")
        text = self.output(job)
        self.assertRegex(text, rf"restarted from version \d+ of \S*/{image},(.|\n)*"
                               rf"restarted from version \d+ of \S*/{job}\.0,")
        again = [int(n) for n in re.findall(r"^\d+$", text[text.rindex("restarted"):], re.M)]
        self.assertEqual(again, list(range(again[0], 91)))

    def test_a_batch_script_goes_on_in_another_job(self):
        job = self.submit("for i in $(seq 1 120); do echo $i; perl -e 'select undef, undef, undef, 0.1'; done; echo end",
                          "--checkpoint-interval=1s")
        for _ in range(2):  # the second time from a version of the restored script
            image = f"{job}.batch"
            self.wait_versions(image, 2)
            self.sh(["scancel", "-b", "-s", "KILL", job])
            self.wait_job(job)
            job = self.submit("echo fresh", f"--restart-dir={image}", "--checkpoint-interval=1s")
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        text = self.output(job)
        self.assertIn("restarted from version", text)
        self.assertEqual(text.split()[-2:], ["120", "end"])
        self.assertNotIn("fresh", text)

    def test_tasks_that_had_ended_stay_ended(self):
        script = self.work / "two.sh"
        script.write_text("#!/bin/sh\n[ $SLURM_PROCID = 1 ] && exit 0\n"
                          "exec perl -e '$| = 1; for my $i (1 .. 60) { print qq($i\\n); "
                          "select undef, undef, undef, 0.1 }'\n")
        script.chmod(0o755)
        image = self.killed_run([str(script)], 2, versions=3)
        for tasks in (2, 1):
            result = self.srun(f"-n{tasks}", f"--restart-dir={image}", "none")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(numbers(result.stdout)[-1], 60)
        self.assertIn("holds 2 tasks, this step has 3", self.srun("-n3", f"--restart-dir={image}", "none").stderr)
        job = self.submit(f"srun -n2 {script}", "-n2", "--checkpoint-interval=1s")
        self.wait_versions(f"{job}.0", 3)
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED", self.output(job))
        self.assertIn("restarted from version", self.output(job))


class StandardInput(JobCase):
    def setUp(self):
        super().setUp()
        (self.work / "reader.py").write_text(READER)
        (self.work / "in").write_text("".join(f"line{i:02d}\n" for i in range(1, 61)))

    def check_once(self, text):
        lines = re.findall(r"got line(\d+)", text)
        self.assertEqual(lines, [f"{i:02d}" for i in range(int(lines[0]), 61)])
        self.assertGreater(int(lines[0]), 5)

    def test_a_file_goes_on_where_it_was_read_to(self):
        job = self.submit("exec python3 reader.py", "--checkpoint-interval=1s", "--input=in")
        image = f"{job}.batch"
        self.wait_versions(image, 2)
        self.sh(["scancel", "-b", "-s", "KILL", job])
        self.wait_job(job)
        job = self.submit("", f"--restart-dir={image}", "--input=in")
        self.assertEqual(self.wait_job(job), "COMPLETED", self.output(job))
        self.check_once(self.output(job))
        # Another file is another input.
        (self.work / "other").write_text("line77\n")
        job = self.submit("", f"--restart-dir={image}", "--input=other")
        self.assertEqual(self.wait_job(job), "COMPLETED", self.output(job))
        self.assertIn("got line77", self.output(job))

    def test_a_batch_script_s_goes_on_after_a_requeue(self):
        job = self.submit("exec python3 reader.py", "--checkpoint-interval=1s", "--input=in")
        self.wait_versions(f"{job}.batch", 2)
        self.cluster.run(["scontrol", "requeue", job])
        self.assertEqual(self.wait_job(job, timeout=90), "COMPLETED")
        self.check_once(self.output(job).split("restarted from")[1])


class Suspended(JobCase):
    def suspended_run(self):
        srun, job = self.start_srun("--checkpoint-interval=1s", *PERL)
        self.wait_versions(f"{job}.0", 1)
        self.cluster.run(["scontrol", "suspend", job])
        before = len(self.versions(f"{job}.0"))
        time.sleep(4)
        return srun, job, before

    def test_no_version_while_frozen(self):
        srun, job, before = self.suspended_run()
        # One more at most: Slurm stops the processes a second before it freezes them.
        self.assertLessEqual(len(self.versions(f"{job}.0")), before + 1)
        self.assertIn("the step is suspended", self.agent_log())
        self.cluster.run(["scontrol", "resume", job])
        self.wait_versions(f"{job}.0", before + 3)
        self.assertEqual(srun.wait(30), 5)
        said = [line for line in self.text("srun.out").splitlines() if "slurm-icp" in line]
        self.assertEqual(said, [f"slurm-icp: step {job}.0: it is suspended: no versions until it goes on"])

    def test_killed_while_frozen(self):
        """The agent waits for nothing, and what it has of before goes on."""
        srun, job, _ = self.suspended_run()
        agents = self.agents()
        self.assertTrue(agents)
        for pid in agents:
            self.assertNotIn(b"State:\tD", leftovers.read(f"/proc/{pid}/status"))
        self.sh(["scancel", job])
        srun.wait(60)
        self.wait_for(lambda: not self.agents(), 20, "the agents to end")
        result = self.srun(f"--restart-dir={job}.0", "none")
        self.assertEqual(result.returncode, 5, result.stderr)
        self.assertEqual(result.stdout.split()[-1], "60")


class SuspendedLinuxProc(Suspended):
    options = {"proctrack": "linuxproc"}
    test_killed_while_frozen = None

    def test_no_version_while_frozen(self):
        """Nothing freezes: one version of the stopped processes, which go on after a restart."""
        srun, job, before = self.suspended_run()
        self.assertLessEqual(len(self.versions(f"{job}.0")), before + 2)
        self.assertIn("the step is suspended", self.agent_log())
        self.cluster.run(["scancel", job])
        srun.wait(60)
        result = self.srun(f"--restart-dir={job}.0", "none")
        self.assertEqual(result.returncode, 5, result.stderr)
        self.assertEqual(result.stdout.split()[-1], "60")


class Told(JobCase):
    def setUp(self):
        super().setUp()
        (self.work / "refused.py").write_text("import time\nopened = open('/proc/self/mem', 'r+b', 0); time.sleep(5)\n")

    def lines(self, script):
        job = self.submit(script, "--checkpoint-interval=1s")
        self.assertEqual(self.wait_job(job), "COMPLETED")
        return [line for line in self.output(job).splitlines() if "slurm-icp" in line]

    def test_what_srun_hides_is_said_in_the_script_s_output(self):
        for hidden in ("", ">/dev/null 2>&1", "2>other.err"):
            said = self.lines(f"srun python3 refused.py {hidden}")
            self.assertEqual(len(said), 1, said)
            self.assertRegex(said[0], r"step \d+\.0: no checkpoint could be taken: .*descriptor 3")

    def test_a_script_that_works_on_after_its_steps_is_told(self):
        said = self.lines("srun true; perl -e 'for (1 .. 60) { select undef, undef, undef, 0.1 }'")
        self.assertEqual(len(said), 1, said)
        self.assertRegex(said[0], r"step \d+\.batch: no checkpoints of the script itself after its first step")
        self.assertEqual(self.lines("for i in 1 2 3; do srun sleep 2; done"), [])


class SiteScript(JobCase):
    """The administrator's script runs as the user, who may do with it what they like: inside of the job, then."""

    @classmethod
    def configure(cls):
        super().configure()
        script = cls.cluster.bin_dir / "site.sh"
        cls.cluster.icp_config += f"site_script: {script}\n"

    def test_it_is_where_the_job_is(self):
        script = self.cluster.bin_dir / "site.sh"
        script.write_text('#!/bin/sh\ncat /proc/self/cgroup > "$4/../site.$1.$2"\nid -u >> "$4/../site.$1.$2"\n')
        script.chmod(0o755)
        srun, job = self.start_srun("--checkpoint-interval=1s", "sleep", "100")
        self.wait_text(f"site.{job}.0", rf"(?s)/job_{job}/step_0.*\n{os.stat(self.work).st_uid}\n")
        self.sh(["scancel", job])
        srun.wait(30)


class Heterogeneous(JobCase):
    options = {"nodes": 2}

    def test_each_component_goes_on_from_its_own_image(self):
        def count(name):
            return ["perl", "-e", f"$| = 1; for my $i (1 .. 60) {{ print qq({name} $i\\n); "
                    "select undef, undef, undef, 0.1 }"]
        srun = self.start(["srun", "--checkpoint-interval=1s", "-n1", *count("A"), ":", "-n1", *count("B")], "het.out")

        def images():
            return sorted(path.name for path in self.work.glob("*.0") if len(self.versions(path.name)) > 1)
        first, second = self.wait_for(lambda: len(images()) == 2 and images(), 40, "versions of both components")
        for pid in leftovers.processes(self.cluster.node_names):
            if leftovers.read(f"/proc/{pid}/comm").strip() == b"perl":
                os.kill(pid, 9)
        srun.wait(60)
        result = self.srun(f"--restart-dir={first}", "-n1", "none", ":", f"--restart-dir={second}", "-n1", "none")
        self.assertEqual(result.returncode, 0, result.stderr)
        for name in "AB":
            again = [int(n) for n in re.findall(rf"^{name} (\d+)$", result.stdout, re.M)]
            self.assertEqual(again, list(range(again[0], 61)))
            self.assertGreater(again[0], 5)


class Processors(JobCase):
    options = {"cpus": 2, "task_plugin": "task/affinity"}

    def test_the_new_step_s_binding_holds(self):
        (self.work / "where.py").write_text(WHERE)
        where = ["--cpu-bind=cores", "python3", "where.py"]
        image = self.killed_run(where, 1)
        before = re.findall(r"on (\[.*\])", self.text("first.out"))[-1]
        other = self.start(["srun", *where], "other.out")
        taken = self.wait_text("other.out", r"on (\[.*\])")[1]
        again = self.start(["srun", "--cpu-bind=cores", f"--restart-dir={image}", "none"], "again.out")
        here = self.wait_text("again.out", r"on (\[.*\])")[1]
        self.assertEqual(before, taken, "the other job was to get the first one's processor")
        self.assertNotEqual(here, taken)
        for child in (again, other):
            child.terminate()
            child.wait(30)


if __name__ == "__main__":
    harness.main()
