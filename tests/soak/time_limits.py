#!/usr/bin/env -S python3 -B
# SPDX-License-Identifier: GPL-2.0-or-later
"""A job of ten minutes' work under a time limit of two finishes by itself, for hardly more processor time than without
limits. Takes a quarter of an hour; prints the numbers. Needs root and a build (ICP_BUILD_DIR, default build/release).
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "slurm"))
import harness  # noqa: E402
from chaincase import ChainCase  # noqa: E402


class TimeLimits(ChainCase):
    def test_ten_minutes_under_a_limit_of_two(self):
        self.check_chain(seconds=600, minutes=2, restarts=4, most=1.05, timeout=2400)


if __name__ == "__main__":
    harness.main()
