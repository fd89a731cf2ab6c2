#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that make pseudo terminals, as an ordinary user's: killed and put back, then typed to and read.

    icp_terminal_test.py ICP [unittest arguments]

Needs root. Ends only processes that it started.
"""
import contextlib
import os
import re
import shutil
import signal
import subprocess
import unittest

import icp_harness
from icp_harness import icp, program, wait_for

NOBODY = 65534
USER = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


@unittest.skipUnless(icp_harness.ROOT, "needs root")
class Terminals(icp_harness.Case):
    def setUp(self):
        super().setUp()
        os.chown(self.dir, NOBODY, NOBODY)
        self.environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.dir), "TMUX_TMPDIR": str(self.dir), "LC_ALL": "C.UTF-8",
                            "TERM": "xterm", "SHELL": "/bin/bash", "PS1": "$ "}

    def run_icp(self, *words):
        """icp with its output in files of nobody's; a group of its own, so that nothing of it is left."""
        process = self.start(program(), *words, cwd=self.dir, env=self.environment, start_new_session=True)
        for stream in (self.out, self.err):
            os.chown(stream, NOBODY, NOBODY)
        return process

    def run_program(self, *command):
        # icp has the user's own shell and home directory in the environment.
        words = ["env", *(f"{name}={value}" for name, value in self.environment.items()), *command]
        process = self.run_icp("run", "--verbose", "--dir", self.image, "--interval", "1h", "--user", "nobody", "--", *words)
        wait_for(lambda: "a version every" in self.err.read_text(), what="icp run")
        pid = int(re.search(r"process (\d+), a version", self.err.read_text())[1])
        return process, pid

    def take_version(self, process, number=1):
        os.kill(process.pid, signal.SIGUSR1)
        wait_for(lambda: f"version {number}:" in self.err.read_text() or "no version" in self.err.read_text(), what="a version")
        self.assertIn(f"version {number}:", self.err.read_text())

    def tree(self, pid):
        found = [pid]
        for parent in found:
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{parent}/task"):
                    with open(f"/proc/{parent}/task/{task}/children", encoding="ascii") as children:
                        found += map(int, children.read().split())
        return found

    def kill_all(self, process):
        for pid in reversed(self.tree(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(20)

    # --- tmux ---

    def tmux(self, *words):
        return subprocess.run([*USER, "tmux", "-L", "t", *words], env=self.environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=30, check=False).stdout

    def type_and_read(self, window, line, pattern):
        self.tmux("send-keys", "-t", f"s:{window}", line, "Enter")
        wait_for(lambda: re.search(pattern, self.tmux("capture-pane", "-p", "-t", f"s:{window}"), re.M),
                 what=f"{pattern} in window {window}, which shows {self.tmux('capture-pane', '-p', '-t', f's:{window}')!r}")

    @unittest.skipUnless(shutil.which("tmux"), "no tmux")
    def test_tmux_with_three_windows(self):
        start = "tmux -L t -f /dev/null new-session -d -s s -x 80 -y 24 'bash --norc'; " \
                "for i in 1 2; do tmux -L t new-window -t s 'bash --norc'; done; exec sleep 1000"
        process, _ = self.run_program("sh", "-c", start)
        wait_for(lambda: self.tmux("list-windows", "-t", "s").count("\n") == 3, what="three windows")
        for window in range(3):
            self.type_and_read(window, f"own=w{window}; echo is-$own", rf"^is-w{window}$")
        self.type_and_read(1, "sleep 500 &", r"^\[1\]")
        self.type_and_read(2, "cat", r"cat$")
        self.take_version(process)
        self.take_version(process, 2)
        self.type_and_read(0, "echo alive-$own", r"^alive-w0$")
        self.kill_all(process)
        again = self.run_icp("restart", "--verbose", "--dir", self.image)
        wait_for(lambda: "restarted version 2" in self.err.read_text(), what="the restart")
        for window in range(2):
            self.type_and_read(window, "echo still-$own $(tty)", rf"^still-w{window} /dev/pts/\d+$")
        self.type_and_read(1, "jobs", r"Running +sleep 500")
        self.type_and_read(2, "to the cat", r"^to the cat\nto the cat$")
        self.tmux("send-keys", "-t", "s:2", "C-c")
        self.type_and_read(2, "echo back-$own", r"^back-w2$")
        self.kill_all(again)

    # --- script ---

    @unittest.skipUnless(shutil.which("script"), "no script")
    def test_script(self):
        """script(1) copies between its own streams and a terminal."""
        counter = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.2; done; stty size; tty"
        process, _ = self.run_program("script", "-q", "-e", "-c", counter, self.dir / "typescript")
        wait_for(lambda: "line 2" in self.out.read_text(), what="two lines")
        self.take_version(process)
        self.kill_all(process)
        output = self.out  # a file goes on to be the program's output
        done = self.run_icp("restart", "--verbose", "--dir", self.image)
        self.assertEqual(done.wait(60), 0, self.err.read_text())
        self.assertRegex(output.read_text().replace("\r", ""), r"line 7\nline 8\n\d+ \d+\n/dev/pts/\d+\n$")

    # --- Open MPI ---

    @unittest.skipUnless(shutil.which("mpirun.openmpi") and shutil.which("mpicc.openmpi"), "no Open MPI")
    def test_mpirun(self):
        """mpirun makes a terminal for each rank's output."""
        source = self.dir / "sum.c"
        source.write_text(MPI_SUM)
        subprocess.run(["mpicc.openmpi", "-o", self.dir / "sum", source], check=True, timeout=120)
        self.environment.update({name: value for name, value in os.environ.items()
                                 if name.startswith(("OMPI_", "OPAL_", "PMIX_", "LD_LIBRARY_PATH"))})
        self.environment["PATH"] = os.path.dirname(shutil.which("mpirun.openmpi")) + ":/usr/bin:/bin"
        words = ["mpirun.openmpi", "--oversubscribe", "-n", "3", str(self.dir / "sum")]
        process, _ = self.run_program(*words)
        wait_for(lambda: "ROUND 10 " in self.out.read_text(), 60, what="ten rounds")
        self.take_version(process)
        self.kill_all(process)
        output = self.out
        done = self.run_icp("restart", "--verbose", "--dir", self.image)
        self.assertEqual(done.wait(120), 0, self.err.read_text() + output.read_text())
        self.assertRegex(output.read_text(), r"RESULT 3 ranks, sum 2320\n")


MPI_SUM = r"""
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char** argv) {
  int rank, ranks;
  long total = 0;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  for (long i = 0; i < 40; ++i) {
    long mine = i * (rank + 1) / 2, sum = 0;
    MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    total += sum;
    if (rank == 0 && i % 5 == 0) printf("ROUND %ld %ld\n", i, total), fflush(stdout);
    usleep(50000);
  }
  if (rank == 0) printf("RESULT %d ranks, sum %ld\n", ranks, total);
  MPI_Finalize();
  return 0;
}
"""

if __name__ == "__main__":
    icp_harness.main(__doc__)
