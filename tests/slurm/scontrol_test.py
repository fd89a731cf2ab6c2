# SPDX-License-Identifier: GPL-2.0-or-later
"""The front end of scontrol: everything but `checkpoint` passes unchanged; `checkpoint` is as Slurm 18.08 had it."""

import pathlib
import re
import shlex
import shutil

import harness
from commandcase import COUNT, FRONT_END, NEVER, CommandCase

DENIED = "Access/permission denied"
INVALID_JOB = "Invalid job id specified"
DONE = "Job/step already completing or completed"
PENDING = "Job is pending execution"
UNSUPPORTED = "Requested operation not supported on this system"
DISABLED = "Requested operation is presently disabled"
UNFINISHED = "Job is not finished"
BUSY = "Operation already in progress"


def refused(text):
    return "", f"scontrol_checkpoint error: {text}\n", 1


ACCEPTED = "", "", 0


class ScontrolCase(CommandCase):
    options = {**CommandCase.options, "install": [p for p in (*harness.TOOLS, FRONT_END) if p.exists()]}

    def scontrol(self, *words, **more):
        return self.words_of(["scontrol", *words], **more)

    def checkpoint(self, *words, **more):
        return self.scontrol("checkpoint", *words, **more)


class PassThrough(ScontrolCase):
    options = {**ScontrolCase.options, "coordinator": False}
    with_plugin = False

    def compare(self, words, **more):
        """The same line through the front end, and without it."""
        ours = self.words_of(["scontrol", *words], **more)
        environment = {**more.pop("env", {}), "PATH": self.cluster._path().partition(":")[2]}
        theirs = self.words_of(["scontrol", *words], env=environment, **more)
        self.assertEqual(ours, theirs, words)
        return ours

    def test_the_front_end_is_what_is_tested(self):
        which = self.sh("type -p scontrol").stdout.strip()
        self.assertEqual(pathlib.Path(which), self.cluster.bin_dir / "scontrol")
        self.assertEqual(pathlib.Path(which).read_bytes(), FRONT_END.read_bytes())

    def test_commands(self):
        codes = set()
        for line in ["show partition", "-o show partition", "show partition -o", "--oneliner show part",
                     "show hostnames n[1-3]", "show hostlist n1,n2", "show job 999", "show step", "show nonsense",
                     "-d -a show partition test", "--hide show partition", "-u nobody show partition",
                     "--uid=root show reservation", "--uid root show reservation", "-Q bogus", "bogus", "c", "C",
                     "checkpointx", "xcheckpoint", "che_ck", "hold", "hold 999", "requeue 999",
                     "update", "update job=999 x=y", "cancel_reboot nowhere", "create", "create reservation",
                     "listpids nonsense", "version", "-V", "--version", "help", "-h", "--help", "--usage",
                     "-V checkpoint able 1", "checkpoint able 1 --help", "--bogus", "-z", "--bogus checkpoint able 1",
                     "-z checkpoint able 1", "-M", "-M nowhere show job", "-- show partition", "-vv show hostnames a"]:
            with self.subTest(line=line):
                codes.add(self.compare(line.split())[2])
        self.compare([""])
        self.compare(["", "able", "1"])
        self.assertEqual(codes, {0, 1})

    def test_commands_that_change_something(self):
        job = self.submit("true", "--hold")
        for words in (["update", f"jobid={job}", "comment=two words"], ["hold", str(job)], ["release", str(job)]):
            self.assertEqual(self.scontrol(*words), ACCEPTED)
        self.wait_job(job)
        self.assertEqual(self.job(job)["JobState"], "COMPLETED")

    def test_interactive(self):
        typed = "show hostnames n[1-3]\nversion\nbogus\n\nshow partition\nquit\n"
        for words in ([], ["-Q"], ["-o"]):
            script = self.work / "typed"
            script.write_text(typed)
            with self.subTest(words=words):
                ours = self.words_of(f"scontrol {' '.join(words)} < {script}")
                theirs = self.words_of(f"PATH=${{PATH#*:}}; scontrol {' '.join(words)} < {script}")
                self.assertEqual(ours, theirs)
                self.assertIn("n1\nn2\nn3\n", ours[0])
                self.assertIn("PartitionName=test", ours[0])

    def test_arguments_and_environment_are_the_same(self):
        out, err, code = self.scontrol("-c", 'tr "\\0" "|" < /proc/$$/cmdline; exit 7', "-o", "show", "two words", "",
                                       env={"ICP_REAL_SCONTROL": "/bin/bash"})
        self.assertEqual((err, code), ("", 7))
        self.assertEqual(out, 'scontrol|-c|tr "\\0" "|" < /proc/$$/cmdline; exit 7|-o|show|two words||')
        environment = {"ICP_REAL_SCONTROL": "/usr/bin/env", "POSIXLY_CORRECT": "1", "X": "a b"}
        out, _, _ = self.scontrol(env=environment)
        wanted, _, _ = self.words_of(["env"], env=environment)
        self.assertEqual(out, wanted)

    def copies(self, *names):
        """Directories of self.work, each with a copy of the front end."""
        found = []
        for name in names:
            directory = self.work / name
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            directory.chmod(0o755)
            shutil.copy(FRONT_END, directory / "scontrol")
            found.append(str(directory))
        return found

    def test_copies_do_not_execute_each_other(self):
        one, two = self.copies("one", "two")
        path = f"{one}:{two}:{one}"
        out, err, code = self.words_of([f"{one}/scontrol", "show", "partition"], env={"PATH": path})
        self.assertEqual((out, code), ("", 1))
        self.assertRegex(err, r"^scontrol: error: cannot find Slurm's own scontrol: .*set ICP_REAL_SCONTROL")
        out, err, code = self.words_of([f"{one}/scontrol", "version"], env={"ICP_REAL_SCONTROL": f"{two}/scontrol"})
        self.assertEqual((out, code), ("", 1))
        self.assertIn(f"ICP_REAL_SCONTROL={two}/scontrol is none", err)
        out, _, code = self.words_of(["scontrol", "version"], env={"PATH": f"{path}:/usr/bin:/bin"})
        self.assertRegex(out, r"^slurm.* \d")
        self.assertEqual(code, 0)

    def test_diverted(self):
        """As dpkg-divert has it: the real one beside ours; also when ours is a symbolic link."""
        (one,) = self.copies("diverted")
        real = pathlib.Path(one) / "scontrol.distrib"
        real.write_text("#!/bin/bash\necho diverted \"$@\"\n")
        real.chmod(0o755)
        for command in ([f"{one}/scontrol"], ["scontrol"]):
            # In the order in which it was typed, although options may stand anywhere.
            out = self.words_of([*command, "show", "-o", "job", "-d"], env={"PATH": f"{one}:/usr/bin:/bin"})
            self.assertEqual(out, ("diverted show -o job -d\n", "", 0))
        (pathlib.Path(one) / "scontrol").unlink()
        (pathlib.Path(one) / "scontrol").symlink_to(self.cluster.bin_dir / "scontrol")
        self.assertEqual(self.words_of([f"{one}/scontrol", "hold", "1"]), ("diverted hold 1\n", "", 0))

    def test_icp_is_missing(self):
        (one,) = self.copies("alone")
        out, err, code = self.words_of([f"{one}/scontrol", "checkpoint", "able", "1"], env={"PATH": "/nonexistent"})
        self.assertEqual((out, code), ("", 1))
        self.assertRegex(err, "^scontrol: error: cannot find icp ")


class Grammar(ScontrolCase):
    """Lines that icpctld never sees."""

    def test_wrong_lines(self):
        aborted = "scontrol: error: Request aborted\n"
        for words, err in [(["checkpoint"], "too few arguments for keyword:checkpoint\n"),
                           (["CH", "able"], "too few arguments for keyword:CH\n"),
                           (["check", "able", "1", "2", "3", "4"], "too many arguments for keyword:check\n"),
                           (["ch", "able", "x"], "Invalid job step name\n"),
                           (["ch", "nonsense", "1"], "Invalid checkpoint operation: nonsense\n"),
                           (["ch", "e", "1"], "Invalid checkpoint operation: e\n"),
                           (["ch", "create", "1", "Dir=x"], f"scontrol: error: Invalid input: Dir=x\n{aborted}")]:
            with self.subTest(words=words):
                self.assertEqual(self.scontrol(*words), ("", err, 1))
                self.assertEqual(self.scontrol("-Q", *words), ("", "", 1))
                self.assertEqual(self.scontrol(*words, "--quiet"), ("", "", 1))

    def test_unknown_jobs(self):
        for words in (["checkpoint", "able", "999"], ["chec", "a", "999.0"], ["CHECKPOINT", "CREATE", "999"],
                      ["ch", "create", "0"], ["ch", "res", "999"], ["ch", "er", "999"], ["-o", "ch", "en", "999"],
                      ["--", "ch", "d", "999"], ["-v", "ch", "re", "999", "MaxWait=5"]):
            with self.subTest(words=words):
                self.assertEqual(self.scontrol(*words), refused(INVALID_JOB))

    def test_other_clusters(self):
        for words, env in ((["-M", "other", "checkpoint", "able", "1"], {}),
                           (["checkpoint", "able", "1", "--clusters=other"], {}),
                           (["checkpoint", "able", "1"], {"SLURM_CLUSTERS": "other"})):
            out, err, code = self.scontrol(*words, env=env)
            self.assertEqual((out, code), ("", 1))
            self.assertIn("leave out -M", err)

    def test_no_coordinator(self):
        empty = self.work / "empty.yaml"
        empty.write_text("log: none\n")
        out, err, code = self.checkpoint("able", "1", env={"ICP_CONFIG": str(empty)})
        self.assertEqual((out, code), ("", 1))
        self.assertRegex(err, f"^scontrol_checkpoint error: no coordinator is configured in {empty};")
        self.cluster.kill_coordinator()
        try:
            out, err, code = self.checkpoint("able", "1")
            self.assertEqual((out, code), ("", 1))
            self.assertRegex(err, rf"^scontrol_checkpoint error: cannot reach icpctld \(127.0.0.1:"
                                  rf"{self.cluster.coordinator_port}: Connection refused\); is icpctld running\?\n$")
        finally:
            self.cluster.start_coordinator()


class Semantics(ScontrolCase):
    def wait_error(self, job, pattern, timeout=30):
        """Wait until `error` prints something that matches."""
        def said():
            out, err, code = self.checkpoint("error", str(job))
            self.assertEqual((err, code), ("", 0))
            return re.search(pattern, out)
        return self.wait_for(said, timeout, f"{pattern} from error; icpctld: {self.ctld_log()}")

    def test_create(self):
        srun, job = self.start_counting("create.out")
        self.assertEqual(self.checkpoint("able", job), ("Yes\n", "", 0))
        self.assertEqual(self.checkpoint("error", job), ("error(0): \n", "", 0))
        self.assertEqual(self.versions(f"{job}.0"), [])
        self.assertEqual(self.checkpoint("create", job), ACCEPTED)
        self.wait_versions(f"{job}.0", 1)
        self.wait_error(job, r"^error\(0\): $")
        self.assertEqual(self.scontrol("ch", "cr", f"{job}.0", "maxwait=20"), ACCEPTED)
        self.wait_versions(f"{job}.0", 2)
        self.assertIsNone(srun.poll())
        self.assertEqual(self.checkpoint("create", f"{job}.7"), refused(UNSUPPORTED))

    def test_who_may(self):
        _, job = self.start_counting("who.out")
        for operation in ("able", "create", "disable", "enable", "error", "vacate", "requeue", "restart"):
            self.assertEqual(self.checkpoint(operation, job, user="nobody"), refused(DENIED), operation)
        self.assertEqual(self.checkpoint("able", job, user="root"), ("Yes\n", "", 0))
        self.assertEqual(self.checkpoint("create", job, user="root"), ACCEPTED)
        self.wait_versions(f"{job}.0", 1)
        self.assertEqual(self.job(job)["JobState"], "RUNNING")

    def test_disable_counts(self):
        _, job = self.start_counting("disable.out")
        for _ in range(3):  # without a disable before: stays at nothing
            self.assertEqual(self.checkpoint("enable", job), ACCEPTED)
        self.assertEqual(self.checkpoint("able", job), ("Yes\n", "", 0))
        self.assertEqual(self.checkpoint("disable", job), ACCEPTED)
        self.assertEqual(self.checkpoint("able", job), ("No\n", "", 0))
        self.assertEqual(self.checkpoint("able", f"{job}.0"), ("No\n", "", 0))
        for operation in ("create", "vacate"):
            self.assertEqual(self.checkpoint(operation, job), refused(DISABLED))
        self.assertEqual(self.checkpoint("disable", job), ACCEPTED)
        self.assertEqual(self.checkpoint("enable", job), ACCEPTED)
        self.assertEqual(self.checkpoint("able", job), ("No\n", "", 0))
        self.assertEqual(self.checkpoint("enable", job), ACCEPTED)
        self.assertEqual(self.checkpoint("able", job), ("Yes\n", "", 0))
        self.assertEqual(self.checkpoint("create", job), ACCEPTED)
        self.wait_versions(f"{job}.0", 1)

    def test_while_one_runs(self):
        _, job = self.start_counting("busy.out")
        with self.slow_agents():
            self.assertEqual(self.checkpoint("create", job, "MaxWait=60"), ACCEPTED)
            out, err, code = self.checkpoint("able", job)
            self.assertEqual((err, code), ("", 0))
            self.assertRegex(out, r"^Began at 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\n$")
            self.assertEqual(self.checkpoint("create", job), refused(BUSY))
            self.assertEqual(self.checkpoint("vacate", job), refused(BUSY))
        self.wait_versions(f"{job}.0", 1)
        self.wait_for(lambda: self.checkpoint("able", job) == ("Yes\n", "", 0), 20, "the round's end")

    def test_time_out(self):
        srun, job = self.start_counting("late.out")
        with self.slow_agents():
            self.assertEqual(self.checkpoint("create", job, "MaxWait=1"), ACCEPTED)
            self.wait_error(job, r"^error\(5004\): .")
        self.wait_for(lambda: self.checkpoint("create", job, "MaxWait=30") == ACCEPTED, 30, "a version after it")
        self.wait_versions(f"{job}.0", 1)
        self.wait_error(job, r"^error\(0\): $")
        self.assertIsNone(srun.poll())

    def test_failed_vacate_kills_nothing(self):
        srun, job = self.start_counting("alive.out")
        with self.slow_agents():
            self.assertEqual(self.checkpoint("vacate", job, "MaxWait=1"), ACCEPTED)
            self.wait_error(job, r"^error\(5004\): .")
        seen = len(self.text("alive.out"))
        self.wait_for(lambda: len(self.text("alive.out")) > seen + 20, 30, "the job to count on")
        self.assertIsNone(srun.poll())
        self.assertEqual(self.job(job)["JobState"], "RUNNING")

    def test_states_of_jobs(self):
        pending = self.submit("true", "--hold", NEVER)
        for operation in ("able", "create", "vacate", "requeue", "enable", "disable"):
            self.assertEqual(self.checkpoint(operation, pending), refused(PENDING), operation)
        finished = self.submit("true", NEVER)
        self.wait_job(finished, "COMPLETED")
        for operation in ("able", "create", "vacate", "requeue", "enable", "disable"):
            self.assertEqual(self.checkpoint(operation, finished), refused(DONE), operation)
        live = self.submit_counting()
        self.assertEqual(self.checkpoint("restart", live), refused(UNFINISHED))
        self.cluster.run(["scancel", pending, live])

    def test_only_batch_jobs_come_back(self):
        srun, job = self.start_counting("step.out")
        self.assertEqual(self.checkpoint("requeue", job), refused(UNSUPPORTED))
        self.sh(["scancel", job])
        srun.wait(30)
        self.wait_job(job)
        self.wait_for(lambda: self.checkpoint("restart", job) != refused(UNFINISHED), 30, "the job's end")
        self.assertEqual(self.checkpoint("restart", job), refused(UNSUPPORTED))

    def numbers_of(self, job):
        return [int(line) for line in self.output(job).splitlines() if line.isdigit()]

    def assert_goes_on(self, job):
        """The job runs again, and counts on from its version instead of from 1."""
        self.wait_text(f"job-{job}.out", rf"step {job}\.batch restarted from version", timeout=90)
        before = self.output(job).count("\n")
        self.wait_for(lambda: self.output(job).count("\n") > before + 5, 30, "the job to count on")
        self.assertEqual(self.numbers_of(job).count(1), 1)
        self.assertEqual(self.job(job)["Restarts"], "1")

    def test_vacate_and_restart(self):
        job = self.submit_counting()
        self.assertEqual(self.checkpoint("vacate", job), ACCEPTED)
        self.wait_job(job)
        self.assertEqual(self.versions(f"{job}.batch"), [1])
        self.wait_for(lambda: self.checkpoint("restart", job) == ACCEPTED, 30, "restart to be accepted")
        self.assert_goes_on(job)

    def test_image_dir(self):
        """A directory of the caller's choice; that of `restart` beats the one where the last version went."""
        job = self.submit_counting()
        first, second = (self.work / name / f"{job}.batch" for name in ("first", "second"))
        (first / "v000041").mkdir(parents=True)  # numbers go on above what is there
        for path in (first.parent, first, first / "v000041"):
            path.chmod(0o700)
            shutil.chown(path, self.user)
        self.assertEqual(self.checkpoint("create", job, f"ImageDir={first.parent}"), ACCEPTED)
        self.wait_for(lambda: list(first.glob("v*/*/manifest.icp")), 30, f"a version; {self.ctld_log()}")
        self.wait_error(job, r"^error\(0\): $")
        self.assertEqual(self.checkpoint("vacate", job, f"ImageDir={second.parent}"), ACCEPTED)
        self.wait_job(job)
        self.assertEqual(self.versions(second), [43])
        self.assertEqual(self.versions(f"{job}.batch"), [])
        self.wait_for(lambda: self.checkpoint("restart", job, f"ImageDir={first.parent}") == ACCEPTED, 30,
                      "restart to be accepted")
        self.assert_goes_on(job)
        self.assertIn(f"restarted from version 42 of {first}, ", self.output(job))
        self.assertEqual(self.checkpoint("create", job, "ImageDir=/proc/nowhere"), ACCEPTED)
        self.wait_error(job, r"^error\([1-9]\d*\): .*/proc/nowhere")
        self.assertEqual(self.checkpoint("create", job), ACCEPTED)
        self.wait_versions(f"{job}.batch", 1)

    def test_requeue(self):
        job = self.submit_counting()
        self.assertEqual(self.checkpoint("requeue", job), ACCEPTED)
        self.wait_for(lambda: self.job(job).get("Restarts") == "1", 60, "the requeue")
        self.assert_goes_on(job)

    def test_all_steps_of_a_job(self):
        count = shlex.join(COUNT)
        job = self.submit(f"srun -n1 --exact {count} &\nsrun -n1 --exact {count} &\nwait\n", "-n2", NEVER)
        self.wait_connected(job, steps=3)
        self.assertEqual(self.checkpoint("create", job), ACCEPTED)
        for step in (0, 1):
            self.wait_versions(f"{job}.{step}", 1)
        self.assertEqual(self.versions(f"{job}.batch"), [])
        self.assertEqual(self.checkpoint("create", f"{job}.1"), ACCEPTED)
        self.wait_versions(f"{job}.1", 2)
        self.assertEqual(self.versions(f"{job}.0"), [1])


if __name__ == "__main__":
    if not FRONT_END.exists():
        raise SystemExit(f"{FRONT_END} is not built")
    harness.main()
