# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the command icp share: programs to save, directories, processes that do not outlive a test."""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

# Path of the program: set by main().
ICP = ""
# Directory of the build: set by main().
BUILD = pathlib.Path()
ROOT = os.geteuid() == 0
# Whether checkpoint and restart work: as root, or where a user may make namespaces.
ABLE = ROOT or subprocess.run(["unshare", "--user", "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0
# Factor to all time-outs, for machines that are slow (an emulated one).
SLOWNESS = float(os.environ.get("ICP_TEST_SLOWNESS", "1"))

# Prints its pid, then LINES numbers, one every 20 ms, then exits with CODE. SIGTERM makes it exit with 42.
COUNTER = r"""
use strict;
my ($lines, $code) = @ARGV;
$| = 1;
$SIG{TERM} = sub { print "terminated\n"; exit 42 };
print "pid $$\n";
for my $i (1 .. $lines) {
    print "$i\n";
    select(undef, undef, undef, 0.02);
}
exit $code;
"""


def counter(lines, code=0):
    return ["/usr/bin/perl", "-e", COUNTER, str(lines), str(code)]


def program():
    """Path of the program under test."""
    return ICP


def build():
    return BUILD


def icp(*arguments, timeout=60, **options):
    """Runs icp to its end."""
    return subprocess.run([ICP, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=timeout * SLOWNESS, check=False, **options)


def wait_for(condition, seconds=20, what="a condition"):
    """The first true value of condition()."""
    end = time.monotonic() + seconds * SLOWNESS
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come about within {seconds} s")


class Case(unittest.TestCase):
    """A directory of its own, and processes that do not outlive the test."""

    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="icp_cli_"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.image = self.dir / "image"
        self.handles = []
        self.addCleanup(self.end_all)

    def end_all(self):
        for handle in self.handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)

    def own(self, pid):
        """Has `pid` killed at the end, through a handle that no later process can stand for."""
        with contextlib.suppress(ProcessLookupError):
            self.handles.append(os.pidfd_open(pid))

    def start(self, *command, **options):
        """A process with its output in files: self.out, self.err."""
        number = len(self.handles)
        self.out = self.dir / f"out{number}"
        self.err = self.dir / f"err{number}"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            process = subprocess.Popen([*map(str, command)], stdin=subprocess.DEVNULL,
                                       stdout=options.pop("stdout", out),
                                       stderr=options.pop("stderr", err), **options)
        self.own(process.pid)

        def reap():
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        self.addCleanup(reap)
        return process

    def start_counter(self, lines, code=0):
        """A counter that runs by itself, writing to /dev/null, well under way."""
        process = self.start(*counter(lines, code), stdout=subprocess.DEVNULL)
        wait_for(lambda: pathlib.Path(f"/proc/{process.pid}/comm").read_text() == "perl\n", what="exec")
        time.sleep(0.2)
        return process

    def versions(self):
        """Numbers of the versions in the image."""
        result = icp("list", "--json", self.image)
        return [v["version"] for v in json.loads(result.stdout)["versions"]] if result.returncode == 0 else []

    def assert_ends(self, result, code, text=""):
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        if text:
            self.assertRegex(result.stderr, text)

    def assert_one_error(self, result, code, text):
        """One line on stderr, of the usual form, and no success in between."""
        self.assert_ends(result, code, text)
        self.assertRegex(result.stderr, r"\Aicp: [^\n]+\n\Z")


def anybody_may_reach(path):
    return all(os.stat(part).st_mode & 0o001 for part in (path, *pathlib.Path(path).parents))


def main(doc):
    """Takes the path of icp off the command line and runs the tests of the calling module. Users run icp, too: where they
    may not enter the directory of the build (root's home), with a copy of it, and elsewhere."""
    global ICP, BUILD
    if len(sys.argv) < 2:
        sys.exit(doc)
    ICP = os.path.realpath(sys.argv.pop(1))
    BUILD = pathlib.Path(ICP).parent.parent
    with tempfile.TemporaryDirectory(prefix="icp-test-", dir="/var/tmp") as copies:
        if not anybody_may_reach(ICP):
            os.chmod(copies, 0o755)
            for name in ("icp", "icp-init"):
                shutil.copy(os.path.join(os.path.dirname(ICP), name), copies)
            ICP = os.path.join(copies, "icp")
            os.chdir("/")  # restored processes must be able to enter it
        unittest.main(verbosity=2)
