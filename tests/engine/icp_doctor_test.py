#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""icp doctor and icp setup from outside. What each check finds is in tests/unit/doctor_test.cc.

    icp_doctor_test.py ICP [unittest arguments]
"""
import json
import os
import unittest

from icp_harness import Case, ROOT, icp, main


def checks(result):
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


class Doctor(Case):
    def setUp(self):
        super().setUp()
        self.dir.chmod(0o755)
        self.conf = self.dir / "etc/slurm/slurm.conf"
        self.conf.parent.mkdir(parents=True)
        self.conf.write_text("ClusterName=x\n")

    def test_without_slurm(self):
        result = icp("doctor", "--role", "alone", "--dir", self.dir)
        self.assertIn(result.returncode, (0, 1), result.stdout + result.stderr)
        self.assertRegex(result.stdout, r"(?m)^ok +kernel\.release +Linux \d")
        self.assertRegex(result.stdout, r"\d+ ok, (no|\d+) warnings?, no errors\n\Z")
        self.assertEqual(result.stderr, "")

    def test_exit_codes_and_json(self):
        for arguments, code, level in [(["--dir", "/dev/shm"], 1, "warning"), (["--dir", self.dir / "none"], 2, "error")]:
            result = icp("doctor", "--role", "alone", "--json", *arguments)
            self.assert_ends(result, code)
            document = json.loads(result.stdout)
            self.assertEqual(document["level"], level)
            self.assertEqual(document["ok"] + document["warnings"] + document["errors"], len(document["checks"]))
        self.assert_one_error(icp("doctor", "--role", "king"), 2, "king")

    def test_a_node_without_anything(self):
        result = icp("doctor", "--role", "node", "--role", "coordinator", "--json", "--root", self.dir)
        self.assert_ends(result, 2)
        found = checks(result)
        for name in ["kernel.checkpoint_restore", "slurm.plugstack", "install.programs"]:
            self.assertEqual(found[name]["level"], "error", found[name])
            self.assertTrue(found[name]["hint"])
        self.assertEqual(found["slurm.conf"]["text"], "/etc/slurm/slurm.conf")

    def test_setup(self):
        place = ["--root", self.dir, "--slurm-conf", "/etc/slurm/slurm.conf"]
        self.assert_one_error(icp("setup", "enable", *place), 1, "in none of Slurm's plugin directories")
        self.assertEqual(sorted(os.listdir(self.conf.parent)), ["slurm.conf"])
        self.assert_ends(icp("setup", "enable", "--force", "--required", "--plugin", "/p/spank_icp.so", *place), 0)
        fragment = self.conf.parent / "plugstack.conf.d/icp.conf"
        self.assertIn("\nrequired /p/spank_icp.so config=", fragment.read_text())
        found = checks(icp("doctor", "--role", "login", "--json", *place))
        self.assertIn("no job runs", found["slurm.plugstack"]["text"])
        self.assertIn("icp.conf:2: /p/spank_icp.so is in none", found["slurm.plugin"]["text"])
        self.assert_ends(icp("setup", "disable", *place), 0)
        self.assertEqual((self.conf.parent / "plugstack.conf").read_text(), "")
        self.assertFalse(fragment.exists())
        self.assert_one_error(icp("setup"), 2, "--help")

    def attempt(self, *arguments):
        result = icp("doctor", "--role", "alone", "--json", "--try", "--dir", self.dir, *arguments)
        self.assertEqual(list(self.dir.glob("icp-try*")), [])
        return result, checks(result)["try"]

    @unittest.skipUnless(ROOT, "needs root")
    def test_try(self):
        self.dir.chmod(0o1777)
        for arguments in ([], ["--user", "nobody"]):
            result, check = self.attempt(*arguments)
            self.assertEqual(check["level"], "ok", check)
            self.assertIn("had the right result", check["text"])
            self.assertIn(result.returncode, (0, 1))

    @unittest.skipUnless(ROOT, "needs root to become nobody")
    def test_try_that_fails(self):
        result, check = self.attempt("--user", "nobody")  # who may not write there
        self.assertEqual((result.returncode, check["level"]), (2, "error"))
        self.assertIn("cannot make a directory", check["text"])
        self.assertTrue(check["hint"])


if __name__ == "__main__":
    main(__doc__)
