# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs, killed by SIGKILL at random moments under Slurm and restarted, give the answer they always give.

ICP_STRESS_ROUNDS (default 50) rounds over all programs, three at a time; ICP_STRESS_SEED repeats a run.
"""

import concurrent.futures
import os
import random
import re
import threading
import time

import harness
from jobcase import JobCase

ROUNDS = int(os.environ.get("ICP_STRESS_ROUNDS", "50"))
SEED = int(os.environ.get("ICP_STRESS_SEED", str(random.SystemRandom().randrange(10**6))))
AT_ONCE = 3

# name: (tasks, command). Each takes two to four seconds.
PROGRAMS = {
    "mgs": (4, ["mgs", "--rows", "300", "--columns", "60", "--step-ms", "40", "--leak", "--key", "4711"]),
    "malloc_and_write": (1, ["malloc_and_write", "--mib", "48", "--percent", "2", "--rounds", "50", "--round-ms", "40"]),
    "fork_sysv": (1, ["fork_sysv", "--rounds", "400", "--us", "1500"]),
    "threads_sum": (1, ["threads_sum", "--rounds", "60", "--round-ms", "40"]),
    "numpy": (1, ["numpy_threads.py", "--rounds", "40", "--round-ms", "40"]),
    "pipeline": (1, ["pipeline.sh", "12", "15000"]),
    "perl": (1, ["primes.pl", "--limit", "1500000", "--segment-ms", "30"]),
}


def result_of(text):
    found = re.findall(r"^RESULT .*$", text, re.M)
    return found[-1] if found else None


class Stress(JobCase):
    options = {"cpus": 16}

    def answer(self, name):
        tasks, command = PROGRAMS[name]
        return result_of(self.sh(["srun", f"-n{tasks}", *command], timeout=120).stdout)

    def one_round(self, number, name, expected, moment):
        """One death and restart; returns a complaint or None."""
        tasks, command = PROGRAMS[name]
        image = f"stress-{number}"
        first, again = f"{image}.out", f"{image}.again"
        srun = self.start(["srun", f"-n{tasks}", f"-Jr{number}", "--checkpoint-interval=0.4s", f"--checkpoint-dir={image}",
                           *command], first)
        job = self.wait_for(lambda: self.job_named(f"r{number}"), 60, f"job of round {number}")
        directory = f"{image}/{job}.0"
        try:
            self.wait_versions(directory, 1, timeout=30)
        except AssertionError:
            if srun.poll() == 0:  # the program was through before its first version: nothing to kill
                return None if result_of(self.text(first)) == expected else f"round {number}: {name}: wrong at once"
            raise
        time.sleep(moment)
        self.kill_step_tasks(job)
        if srun.wait(60) == 0:
            return None if result_of(self.text(first)) == expected else f"round {number}: {name}: wrong, never killed"
        result = self.srun(f"-n{tasks}", f"--restart-dir={directory}", "none", timeout=120)
        (self.work / again).write_text(result.stdout + result.stderr)
        if result.returncode != 0 or result_of(result.stdout) != expected:
            return (f"round {number}: {name} killed {moment:.2f} s after its first version: exit {result.returncode}, "
                    f"{result_of(result.stdout)} instead of {expected}; {result.stderr[-300:]}")
        with self.lock:
            self.restarted += 1
        return None

    def job_named(self, name):
        lines = self.cluster.run(["squeue", "-h", "-n", name, "-o", "%A %t"], timeout=20).stdout.split()
        return lines[0] if len(lines) == 2 and lines[1] == "R" else None

    def test_random_moments(self):
        print(f"stress: {ROUNDS} rounds, ICP_STRESS_SEED={SEED}", flush=True)
        self.lock, self.restarted = threading.Lock(), 0
        choose = random.Random(SEED)
        answers = {name: self.answer(name) for name in PROGRAMS}
        self.assertNotIn(None, answers.values(), answers)
        names = list(PROGRAMS)
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            rounds = [pool.submit(self.one_round, number, names[number % len(names)], answers[names[number % len(names)]],
                                  choose.uniform(0, 1.2)) for number in range(ROUNDS)]
            complaints = [complaint for complaint in (done.result() for done in rounds) if complaint]
        print(f"stress: {self.restarted} of {ROUNDS} killed and restarted, {len(complaints)} wrong", flush=True)
        self.assertEqual(complaints, [])
        self.assertGreaterEqual(self.restarted, ROUNDS * 9 // 10)


if __name__ == "__main__":
    harness.main()
