#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated agents (thousand_agents) against a real icpctld with a munged of its own.

    agents.py --agents 1000 --rounds 9

Prints a line for each kind of load; fails when a round of one step takes a second or more,
or icpctld needs more than 100 KiB an agent."""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cluster"))
from cluster import Cluster  # noqa: E402

BUILD = pathlib.Path(os.environ.get("ICP_BUILD_DIR", ROOT / "build" / "release"))
MOST_MS, MOST_KIB = 1000, 100


def load(state, kind, agents, rounds):
    """One kind of load on a fresh icpctld. Returns {key: value}."""
    with Cluster(state, nodes=1, install=[BUILD / "coordinator" / "icpctld"], coordinator=True,
                 icp_config="jitter: 0\nlog_level: warning\nmax_writers: 1000\n") as cluster:
        result = subprocess.run(
            [BUILD / "tests" / "soak" / "thousand_agents", str(cluster.coordinator_port), cluster.munge_socket,
             str(os.geteuid()), str(cluster.pids["icpctld"][0]), str(agents), str(rounds), kind],
            capture_output=True, text=True, timeout=600, check=False)
        print(result.stdout, result.stderr, sep="", end="", flush=True)
        if result.returncode != 0:
            print(cluster.coordinator_log.read_text()[-3000:])
            sys.exit(1)
        if not cluster.alive("icpctld"):
            sys.exit("icpctld died")
    return dict(word.split("=") for word in result.stdout.split())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("skipped: agents are root")
        sys.exit(77)
    bad = []
    for kind in ("one-step", "one-node-steps"):
        with tempfile.TemporaryDirectory(prefix="icp-soak-", dir="/var/tmp") as state:
            seen = load(state, kind, options.agents, options.rounds)
        if kind == "one-step" and float(seen["round_ms_median"]) >= MOST_MS:
            bad.append(f"a round takes {seen['round_ms_median']} ms")
        if float(seen["kib_per_agent"]) > MOST_KIB:
            bad.append(f"{seen['kib_per_agent']} KiB an agent")
    if bad:
        sys.exit("; ".join(bad))


if __name__ == "__main__":
    main()
