#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the programs say about themselves, the manual pages, icp.yaml and the completions name the same things.

    icp_manual_test.py ICP [unittest arguments]

The other programs are those beside ICP. Needs no root.
"""
import pathlib
import re
import subprocess
import tempfile
import unittest

from icp_harness import main, program

TOP = pathlib.Path(__file__).resolve().parents[2]
MAN = TOP / "docs/man"
EVERYWHERE = {"help", "version"}


def help_of(path, *words):
    return subprocess.run([path, *words, "--help"], capture_output=True, text=True, check=True).stdout


def options_in_help(text):
    """Long options with which a line begins, every name of each."""
    lines = re.findall(r"^ {2,}((?:-\w,)?--[\w,-]+)", text, re.M)
    return {name for line in lines for name in re.findall(r"--([\w-]+)", line)} - EVERYWHERE


def commands():
    listed = help_of(program()).split("Subcommands:")[1].split("\nTimes:")[0]
    return re.findall(r"^  ([a-z]+) ", listed, re.M)


def options_in_mdoc(page):
    return set(re.findall(r"(?:\bFl|,) -([a-z][\w-]*)", (MAN / page).read_text())) - EVERYWHERE


def keys_of_page():
    return re.findall(r'^\.BR (\w+) ":', (MAN / "icp.yaml.5").read_text(), re.M)


def keys_of_file():
    return re.findall(r"^#? ?([a-z]\w*):(?: |$)", (TOP / "config/icp.yaml").read_text(), re.M)


def spank_options():
    names = (TOP / "spank/options.cc").read_text()
    return set(re.findall(r'_name\[\] = "([\w-]+)"', names))


class Manual(unittest.TestCase):
    def test_icp_has_the_options_of_its_page(self):
        here = options_in_help(help_of(program()))
        for words in [[command] for command in commands()] + [["setup", "enable"], ["setup", "disable"]]:
            here |= options_in_help(help_of(program(), *words))
        page = options_in_mdoc("icp.1") | options_in_mdoc("icp-doctor.1")
        self.assertEqual(sorted(here - page), [], "options that no manual page has")
        foreign = spank_options()  # its page says how these go together
        self.assertEqual(sorted(page - here - foreign), [], "options in a manual page that icp does not know")

    def test_every_command_is_in_the_page(self):
        synopsis = (MAN / "icp.1").read_text().split(".Sh DESCRIPTION")[0]
        known = set(re.findall(r"[a-z]+", " ".join(re.findall(r"^\.Cm (.*)", synopsis, re.M))))
        self.assertEqual([command for command in commands() if command not in known], [])

    def test_every_command_is_completed(self):
        for name in ("icp.bash", "_icp", "icp.fish"):
            text = (TOP / "packaging/completion" / name).read_text()
            missing = [command for command in commands() if not re.search(rf"\b{command}\b", text)]
            self.assertEqual(missing, [], name)

    def test_icpctld_has_the_options_of_its_page(self):
        here = options_in_help(help_of(pathlib.Path(program()).with_name("icpctld")))
        text = (MAN / "icpctld.8").read_text().replace("\\-", "-")
        self.assertEqual([name for name in here if f"--{name}" not in text and f"Fl -{name}" not in text], [])

    def test_the_plugin_has_the_options_of_its_page(self):
        text = (MAN / "spank_icp.8").read_text().replace("\\-", "-")
        page = set(re.findall(r"--((?:checkpoint|restart|requeue|map)[\w-]*)", text))
        self.assertEqual(sorted(spank_options() - page), [], "options that the page does not have")
        self.assertEqual(sorted(page - spank_options()), [], "options that the plugin does not know")

    def test_icp_yaml_and_its_page_have_the_same_keys(self):
        self.assertEqual(sorted(keys_of_file()), sorted(set(keys_of_file())), "twice in icp.yaml")
        self.assertEqual(sorted(set(keys_of_page()) ^ set(keys_of_file())), [])

    def test_each_key_is_known_and_others_are_not(self):
        """With a value that none takes: the complaint is about the value, or about the key."""
        icpctld = pathlib.Path(program()).with_name("icpctld")
        for key in keys_of_file() + ["no_such_key"]:
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                file.write(f"{key}: [[1]]\n")
                file.flush()
                done = subprocess.run([icpctld, "--check", "--config", file.name], capture_output=True, text=True)
            self.assertNotEqual(done.returncode, 0, key)
            self.assertEqual("unknown key" in done.stderr, key == "no_such_key", done.stderr)

    def test_the_file_is_right_and_has_the_defaults(self):
        icpctld = pathlib.Path(program()).with_name("icpctld")
        done = subprocess.run([icpctld, "--check", "--config", TOP / "config/icp.yaml"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))


if __name__ == "__main__":
    main(__doc__)
