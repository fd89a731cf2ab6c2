# SPDX-License-Identifier: GPL-2.0-or-later
"""What a chain of time limits costs in processor time, against one run without limits."""

import re

from coordinated import Coordinated

SLICE_S = 0.1
# The same work in each slice, most of which is waiting. What it took is noted in a file that is not open at a version,
# and so is not put back: work done twice counts twice.
PROGRAM = """
import sys, time
state = 1
for i in range(int(sys.argv[2])):
    before = time.process_time()
    for _ in range(60000):
        state = state * 6364136223846793005 + 1442695040888963407 & 0xffffffffffffffff
    took = time.process_time() - before
    with open(sys.argv[1], "a") as notes:
        notes.write(f"{i} {took:.6f}\\n")
    time.sleep(max(0, SLICE - took))
print("RESULT", state, flush=True)
""".replace("SLICE", str(SLICE_S))


class ChainCase(Coordinated):
    options = {"nodes": 1, "coordinator": True}

    def work_of(self, name):
        """(slices done, seconds of processor time, milliseconds of a fast slice). A restart begins to count a process's
        processor time anew: a slice with one in it would seem to take less than nothing, and counts as the longest."""
        took = sorted(float(line.split()[1]) for line in self.text(name).splitlines())
        counted = [one if one > 0 else took[-1] for one in took]
        return len(took), sum(counted), 1000 * sorted(counted)[len(counted) // 10]

    def check_chain(self, seconds, minutes, restarts, most, timeout):
        """So many seconds' work under a limit of so many minutes: at least so many restarts, at most so much (1.05: 5% more)."""
        slices = int(seconds / SLICE_S)
        (self.work / "program.py").write_text(PROGRAM)
        # Both with the same addresses: those that chance gives one make its loops some percent faster or slower.
        free = self.submit(f"srun setarch -R python3 program.py free.txt {slices}", "-t", "90")
        chain = self.submit(f"srun setarch -R python3 program.py chain.txt {slices}", "-t", str(minutes), "--checkpoint-on=timelimit")
        for job in (free, chain):
            self.assertEqual(self.wait_job(job, timeout=timeout), "COMPLETED", self.output(job))
        results = [re.findall(r"RESULT \d+", self.output(job)) for job in (free, chain)]
        self.assertEqual(results[0], results[1])
        self.assertEqual(len(results[0]), 1)
        (all_slices, without, fast), (done, limited, fast_limited) = self.work_of("free.txt"), self.work_of("chain.txt")
        taken = self.output(chain).count("restarted from version")
        print(f"{taken} restarts; {done} slices for {all_slices}; {limited:.2f} s of processor time, {without:.2f} s without limits: "
              f"{100 * (limited / without - 1):+.1f}%; the fastest tenth up to {fast_limited:.2f} and {fast:.2f} ms", flush=True)
        self.assertEqual(done, all_slices)  # none twice
        self.assertGreaterEqual(taken, restarts)
        self.assertLessEqual(limited, most * without)
