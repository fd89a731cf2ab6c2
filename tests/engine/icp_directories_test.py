# SPDX-License-Identifier: GPL-2.0-or-later
"""--checkpoint-files dir:PATH, and what becomes of files that a program makes, changes and removes by name.

    icp_directories_test.py .../icp
"""
import os
import pathlib
import shutil
import signal
import subprocess
import unittest

import icp_harness
from icp_harness import Case, icp, wait_for

# In `work`: each round makes, changes, renames, links and removes files, none of which is open between two rounds.
PROGRAM = r"""
use strict; $| = 1;
my $rounds = shift;
mkdir "old"; put("old/kept", "kept"); put("big", "y" x 3000000);
sub put { my ($name, $text) = @_; open my $f, ">", $name or die "$name: $!"; print $f $text; close $f or die; }
sub get { my ($name) = @_; open my $f, "<", $name or die "$name: $!"; local $/; my $text = <$f>; $text }
put("sum", "0");
for my $i (1 .. $rounds) {
    put("made$i", "text $i\n" x $i);
    put("sum", get("sum") + $i);
    open my $log, ">>", "log" or die; print $log "round $i\n"; close $log;
    open my $big, "+<", "big" or die; seek $big, $i * 9000, 0; print $big "round $i"; close $big;
    mkdir "d$i" or die; put("d$i/inner", $i); symlink "d$i/inner", "link$i" or die; link "made$i", "again$i" or die;
    if ($i > 3) {
        my $j = $i - 3;
        get("made$j") eq "text $j\n" x $j or die "made$j";
        rename "made$j", "renamed$j" or die; unlink "link$j" or die; unlink "d$j/inner" or die; rmdir "d$j" or die;
    }
    print "round $i\n";
    select undef, undef, undef, 0.03;
}
print "RESULT ", get("sum"), "\n";
"""


def content(directory):
    """What lies in a directory: types, texts, who is the same file as whom."""
    found, names = {}, {}
    for path in sorted(pathlib.Path(directory).rglob("*")):
        name, status = str(path.relative_to(directory)), path.lstat()
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("directory", status.st_mode)
        else:
            found[name] = (path.read_bytes(), status.st_mode, names.setdefault(status.st_ino, name))
    return found


def children_of(pid):
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class FilesCase(Case):
    def run_to_a_version(self, code, work):
        """`icp run` of a Python text that makes the file up when it is ready, with content of open files kept."""
        run = self.start(icp_harness.program(), "run", "--dir", self.image, "--interval", "1h", "--checkpoint-files", "open",
                         "--", "/usr/bin/python3", "-c", code, cwd=work, stdout=subprocess.DEVNULL)
        wait_for((work / "up").exists)
        run.send_signal(signal.SIGUSR1)
        wait_for(self.versions)
        return run

    def work(self, name):
        path = self.dir / name
        path.mkdir()
        return path

    def kill_below(self, run):
        """The program of `icp run`, below its keeper."""
        for keeper in children_of(run.pid):
            for pid in children_of(keeper) or [keeper]:
                os.kill(pid, signal.SIGKILL)
        run.wait(20)


class Directories(FilesCase):
    def program(self, work, rounds=60):
        (self.dir / "program.pl").write_text(PROGRAM)
        return ["perl", str(self.dir / "program.pl"), str(rounds)]

    def kept(self, work, *options, versions=3, after=0.25):
        """Killed some rounds after the last of so many versions."""
        read, write = os.pipe()
        run = subprocess.Popen([icp_harness.program(), "run", "--dir", str(self.image), "--interval", "1h", *options, "--",
                                *self.program(work)], cwd=work, stdout=write, stdin=subprocess.DEVNULL)
        os.close(write)
        self.own(run.pid)
        with os.fdopen(read) as lines:
            for version in range(1, versions + 1):
                for _ in range(8):
                    lines.readline()
                run.send_signal(signal.SIGUSR1)
                wait_for(lambda wanted=version: len(self.versions()) >= wanted, what="a version")
            for _ in range(int(after * 30)):
                lines.readline()
            self.kill_below(run)
            lines.read()

    def expected(self):
        alone = self.work("alone")
        subprocess.run(self.program(alone), cwd=alone, check=True, stdout=subprocess.DEVNULL)
        return content(alone)

    def restarted(self, *options, version=None):
        given = ["--version", version] if version else []
        return icp("restart", "--dir", self.image, *given, *options, cwd=self.dir)

    @unittest.skipUnless(icp_harness.ABLE, "no namespaces")
    def test_all_is_as_at_the_version(self):
        expected = self.expected()
        work = self.work("work")
        self.kept(work, "--checkpoint-files", f"dir:{work}")
        result = self.restarted()
        self.assert_ends(result, 0)
        self.assertIn("RESULT 1830\n", result.stdout)
        self.assertEqual(content(work), expected)
        self.assertTrue(list((self.dir / "work.after-checkpoint").iterdir()), "what was newer has been kept")
        self.assertEqual(icp("verify", self.image).returncode, 0)

    @unittest.skipUnless(icp_harness.ABLE, "no namespaces")
    def test_older_version_and_folded_chain(self):
        expected = self.expected()
        work = self.work("work")
        self.kept(work, "--checkpoint-files", f"dir:{work}")
        self.assert_ends(self.restarted(version=1), 0)
        self.assertEqual(content(work), expected)
        self.assert_ends(icp("compact", self.image), 0)
        self.assert_ends(icp("verify", self.image), 0)
        self.assert_ends(self.restarted(), 0)
        self.assertEqual(content(work), expected)

    @unittest.skipUnless(icp_harness.ABLE, "no namespaces")
    def test_little_is_stored_of_what_has_hardly_changed(self):
        work = self.work("work")
        self.kept(work, "--checkpoint-files", f"dir:{work}", versions=2)
        sizes = [sum(each.stat().st_size for each in self.image.glob(f"v{number:06}/*/directories.*.bin")) for number in (1, 2)]
        self.assertGreater(sizes[0], 3_000_000)
        self.assertLess(sizes[1], sizes[0] / 4)

    @unittest.skipUnless(icp_harness.ABLE, "no namespaces")
    def test_policies(self):
        work = self.work("work")
        self.kept(work, "--checkpoint-files", f"dir:{work}")
        before = content(work)
        result = self.restarted("--changed-files", "refuse")
        self.assert_one_error(result, 125, "has been made since the checkpoint")
        self.assertEqual(content(work), before)
        self.assertFalse((self.dir / "work.after-checkpoint").exists())
        result = self.restarted("--changed-files", "accept")  # goes on with what is there, and finds it made already
        self.assertNotEqual(result.returncode, 0)
        self.assertFalse((self.dir / "work.after-checkpoint").exists())

    def test_what_cannot_be_kept_is_said_at_once(self):
        for what, text in (("dir:/no/such", "cannot find /no/such"), ("dir:/", "is a mount point"), ("all", "none of")):
            result = icp("run", "--dir", self.image, "--interval", "1h", "--checkpoint-files", what, "--", "true")
            self.assertNotEqual(result.returncode, 0)
            self.assertIn(text, result.stderr)

    @unittest.skipUnless(icp_harness.ABLE, "no namespaces")
    def test_image_within_the_directory(self):
        work = self.work("work")
        self.image = work / "image"
        self.kept(work, "--checkpoint-files", f"dir:{work}")
        self.assert_ends(self.restarted(), 0)
        self.assertEqual(self.versions(), [1, 2, 3])


class Files(FilesCase):
    """Without a directory that is kept."""

    @unittest.skipUnless(icp_harness.ABLE, "no namespaces")
    def test_file_whose_mode_does_not_let_it_be_written(self):
        self.dir.chmod(0o755)
        code = ("import os, sys, time\nf = os.open('pack', os.O_RDWR | os.O_CREAT, 0o444)\nos.write(f, b'one ')\nprint('up', flush=True)\n"
                "while not os.path.exists('go'): time.sleep(0.02)\nos.write(f, b'two'); print(open('pack').read())")
        (self.dir / "w").mkdir()
        process = self.start("/usr/bin/python3", "-c", code, cwd=self.dir / "w", stdout=subprocess.DEVNULL)
        wait_for(lambda: (self.dir / "w" / "pack").exists() and (self.dir / "w" / "pack").stat().st_size == 4)
        self.assert_ends(icp("checkpoint", "--dir", self.image, "--pid", process.pid, "--kill"), 0)
        self.assert_ends(icp("verify", "--restore", self.image), 0)
        (self.dir / "w" / "go").touch()
        self.assert_ends(icp("restart", "--dir", self.image), 0)
        self.assertEqual((self.dir / "w" / "pack").read_text(), "one two")
        self.assertEqual((self.dir / "w" / "pack").stat().st_mode & 0o777, 0o444)

    @unittest.skipUnless(icp_harness.ABLE, "no namespaces")
    def test_file_that_was_removed_and_made_again(self):
        for size in (100, 600_000):  # of which a version keeps all; that --checkpoint-files open keeps
            with self.subTest(size=size):
                work = self.work(f"w{size}")
                self.image = self.dir / f"image{size}"
                (work / "input").write_bytes(b"r" * 2_000_000)  # more than a version keeps of what is only read
                code = (f"import os, time\ng = open('input')\nf = open('journal', 'w+b', 0)\nf.write(b'a' * {size})\nopen('up', 'w')\n"
                        "while not os.path.exists('go'): time.sleep(0.02)\nf.write(b'end')\n")
                run = self.run_to_a_version(code, work)
                shutil.copy(work / "journal", work / "other")
                (work / "journal").unlink()
                for number in range(3):  # one of them gets the inode number of the file that is gone
                    (work / f"new{number}").write_text("another program's")
                (work / "journal").write_text("of a later time")
                self.kill_below(run)
                (work / "input").rename(work.parent / "input")  # a restart that fails puts nothing aside
                self.assertNotEqual(icp("restart", "--dir", self.image).returncode, 0)
                self.assertEqual((work / "journal").read_text(), "of a later time")
                (work.parent / "input").rename(work / "input")
                (work / "go").touch()
                self.assert_ends(icp("restart", "--dir", self.image), 0)
                self.assertEqual((work / "journal").read_bytes(), b"a" * size + b"end")
                self.assertEqual((work / "journal.after-checkpoint").read_text(), "of a later time")
                for number in range(3):
                    self.assertEqual((work / f"new{number}").read_text(), "another program's")

    @unittest.skipUnless(icp_harness.ABLE, "no namespaces")
    def test_journal_of_a_later_time(self):
        """SQLite's is made for each transaction: it would be played back into a database that is as of the version."""
        work = self.work("w")
        code = ("import os, time\nf = open('base', 'w+b', 0)\nf.write(b'a' * 600000)\nopen('up', 'w')\n"
                "while not os.path.exists('go'): time.sleep(0.02)\n")
        run = self.run_to_a_version(code, work)
        with (work / "base").open("r+b") as base:  # no longer than before
            base.write(b"b" * 5000)
        (work / "base-journal").write_text("how it was before that")
        self.kill_below(run)
        (work / "go").touch()
        self.assert_ends(icp("restart", "--dir", self.image), 0)
        self.assertEqual((work / "base").read_bytes(), b"a" * 600000)
        self.assertFalse((work / "base-journal").exists())
        self.assertEqual((work / "base-journal.after-checkpoint").read_text(), "how it was before that")


if __name__ == "__main__":
    icp_harness.main(__doc__)
