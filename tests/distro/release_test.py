#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""packaging/release, on a copy of this tree."""
import pathlib
import re
import subprocess
import tempfile
import unittest

TOP = pathlib.Path(__file__).resolve().parents[2]
NAMES = ["CMakeLists.txt", "CHANGELOG.md", "kmod/main.c", "packaging/dkms/dkms.conf", "packaging/rpm/slurm-icp.spec",
         "packaging/debian/changelog", "packaging/debian/control", "packaging/release"]


class Release(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="icp-release-")
        self.addCleanup(directory.cleanup)
        self.tree = pathlib.Path(directory.name)
        for name in NAMES:
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            (self.tree / name).write_bytes((TOP / name).read_bytes())
        (self.tree / "packaging/release").chmod(0o755)
        changelog = (self.tree / "CHANGELOG.md").read_text()
        (self.tree / "CHANGELOG.md").write_text(re.sub(r"^## Unreleased\n", "## Unreleased\n- Something.\n", changelog, flags=re.M))
        self.git("init", "-q")
        self.git("config", "user.name", "A tester")
        self.git("config", "user.email", "tester@localhost")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "Before")

    def git(self, *words):
        return subprocess.run(["git", "-C", self.tree, *words], check=True, capture_output=True, text=True).stdout

    def release(self, *words):
        return subprocess.run([self.tree / "packaging/release", *words], capture_output=True, text=True)

    def refused(self, sentence, *words):
        before = self.git("rev-parse", "HEAD")
        done = self.release(*words)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(sentence, done.stderr)
        self.assertEqual((self.git("rev-parse", "HEAD"), self.git("tag")), (before, ""))

    def test_this_tree_names_one_version(self):
        done = subprocess.run([TOP / "packaging/release", "--check"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"^\d+\.\d+\.\d+\n$")

    def test_commit_tag_and_changelogs(self):
        done = self.release("7.1.0", "--no-build")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.git("status", "--porcelain"), "")
        self.assertEqual(self.git("tag"), "v7.1.0\n")
        self.assertEqual(self.git("log", "-1", "--format=%s"), "Release 7.1.0\n")
        self.assertEqual(self.release("--check").stdout, "7.1.0\n")
        self.assertRegex((self.tree / "CHANGELOG.md").read_text(),
                         r"## Unreleased\n\n## 7\.1\.0 \(\d{4}-\d\d-\d\d\)\n- Something\.\n")
        parsed = subprocess.run(["dpkg-parsechangelog", "-l", self.tree / "packaging/debian/changelog", "-S", "Version"],
                                capture_output=True, text=True)
        self.assertEqual(parsed.stdout, "7.1.0\n", parsed.stderr)
        # There is nothing new since.
        self.git("tag", "-d", "v7.1.0")
        self.refused('nothing under "## Unreleased"', "7.2.0", "--no-build")

    def test_wrong_versions(self):
        self.refused("three numbers", "7.1", "--no-build")
        self.refused("not later than", "0.0.1", "--no-build")

    def test_a_tree_with_changes_or_of_two_versions(self):
        path = self.tree / "CMakeLists.txt"
        path.write_text(path.read_text() + "# more\n")
        self.refused("not committed", "7.1.0", "--no-build")
        path = self.tree / "kmod/main.c"
        path.write_text(re.sub(r'MODULE_VERSION\("[^"]*', 'MODULE_VERSION("0.0.9', path.read_text()))
        self.git("commit", "-q", "-a", "-m", "Two")
        self.refused("several versions", "7.1.0", "--no-build")


if __name__ == "__main__":
    unittest.main()
