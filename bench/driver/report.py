# SPDX-License-Identifier: GPL-2.0-or-later
"""results.json as tables and plots."""

import datetime
import os
import pathlib

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402

MIB = 1 << 20
GOOD, BAD = "reached", "missed"


def seconds(value):
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def size(value):
    return f"{value / MIB:.1f} MiB"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def plot(path, title, label, curves, logarithmic=True):
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, points in curves.items():
        axes.plot([float(x) for x, _ in points], [y for _, y in points], marker="o", label=name)
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set_xlabel(label[0])
    axes.set_ylabel(label[1])
    axes.set_title(title)
    axes.grid(True, alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return f"![{title}]({path.name})\n"


def limits_part(results, _):
    found = results["limits"]
    return "## Limits of this machine\n\n" + table(
        ["", "GB/s"], [[name, f"{found[key] / 1e9:.2f}"] for key, name in
                       (("memcpy", "memcpy"), ("touch", "first touch of memory"), ("write", "write(2) into the page cache"),
                        ("write_flushed", "write(2) and fsync(2)"), ("read", "read(2), warm"))])


def sizes_part(results, out):
    rows = results["sizes"]
    text = "## malloc_and_write: full against incremental, 1% written between versions\n\n" + table(
        ["MiB", "full: stopped", "complete", "flushed", "size", "1%: stopped", "complete", "flushed", "size", "plain write", "flushed",
         "restart", "plain read"],
        [[row["mib"], *cells(row["full"]), *cells(row["incremental"]), seconds(row["plain_write_s"]), seconds(row["plain_flushed_s"]),
          seconds(row["restart_s"]), seconds(row["plain_read_s"])] for row in rows])
    curve = lambda key, part: [(row["mib"], row[part][key]) for row in rows]  # noqa: E731
    text += "\n" + plot(out / "checkpoint-time.svg", "Checkpoint time", ("MiB", "s"),
                        {"full": curve("total_s", "full"), "incremental, 1%": curve("total_s", "incremental"),
                         "stopped, full": curve("stop_s", "full"), "stopped, 1%": curve("stop_s", "incremental"),
                         "plain write": [(row["mib"], row["plain_write_s"]) for row in rows]})
    text += plot(out / "checkpoint-size.svg", "Image size", ("MiB", "bytes"),
                 {"full": curve("bytes", "full"), "incremental, 1%": curve("bytes", "incremental")})
    text += plot(out / "restart-time.svg", "Restart time", ("MiB", "s"),
                 {"restart": [(row["mib"], row["restart_s"]) for row in rows],
                  "plain read": [(row["mib"], row["plain_read_s"]) for row in rows]})
    return text


def cells(taken):
    return [seconds(taken["stop_s"]), seconds(taken["total_s"]), seconds(taken["flushed_s"]), size(taken["bytes"])]


def shared_part(results, _):
    found = results["shared"]
    return f"## Shared memory: {found['mib']} MiB, 1% written between versions\n\n" + table(
        ["", *(f"{one}: {what}" for one in ("full", "1%") for what in ("stopped", "complete", "flushed", "size"))],
        [[kind, *cells(one["full"]), *cells(one["incremental"])] for kind, one in found["kinds"].items()])


def mgs_part(results, out):
    found = results["mgs"]
    taken = found["versions"]
    text = f"## Modified Gram-Schmidt, {found['rows']} x {found['columns']}, 4 processes, one segment of {size(found['segment_bytes'])}\n\n"
    text += table(["version", "stopped", "complete", "flushed", "size"],
                  [[number, *cells(one)] for number, one in enumerate(taken, 1)])
    return text + "\n" + plot(out / "mgs-size.svg", "MGS: image size", ("version", "MiB"),
                              {"size": [(number, one["bytes"] / MIB) for number, one in enumerate(taken, 1)]}, logarithmic=False)


def floor_part(results, _):
    found = results["floor"]
    return f"## The stop without pre-copy, {found['mib']} MiB, 1% written\n\n" + table(
        ["interrupt, PAGEMAP_SCAN, process_vm_readv", "icp run --no-precopy", "ratio"],
        [[seconds(found["floor_s"]), seconds(found["stop_s"]), f"{found['stop_s'] / found['floor_s']:.2f}"]])


def fixed_part(results, _):
    return "## Fixed costs: little memory, nothing written\n\n" + table(
        ["", "stopped", "best", "complete", "restart"],
        [[name, seconds(one["stop_s"]), seconds(one["best_stop_s"]), seconds(one["total_s"]), seconds(one["restart_s"])]
         for name, one in results["fixed"].items()])


def many_part(results, _):
    return "## Many of one kind: little memory, nothing written\n\n" + table(
        ["", "stopped", "complete", "restart"],
        [[name, seconds(one["stop_s"]), seconds(one["total_s"]), seconds(one["restart_s"])] for name, one in results["many"].items()])


def family_part(results, _):
    found = results["family"]
    return f"## {found['mib']} MiB that five processes share by fork()\n\n" + table(
        ["PSS before", "after a version", "image", "stopped", "complete", "restart", "PSS after the restart"],
        [[size(found["before"]), size(found["after"]), size(found["bytes"]), seconds(found["stop_s"]), seconds(found["total_s"]),
          seconds(found["restart_s"]), size(found["restarted"])]])


def versions_part(results, out):
    found = results["versions"]
    text = f"## Restart over the number of versions ({found['mib']} MiB, 1% at random each)\n\n" + table(
        ["versions", "restart", "best"],
        [[number, seconds(one), seconds(found["best_restart_s"][number])] for number, one in found["restart_s"].items()])
    text += f"\nThe last index takes {found['index_bytes_per_page']:.2f} bytes a page, all versions together {size(found['image_bytes'])}.\n\n"
    return text + plot(out / "restart-versions.svg", "Restart time over versions", ("versions", "s"),
                       {"restart": list(found["restart_s"].items())})


def slowdown_part(results, _):
    return "## Slowdown of the job\n\n" + table(
        ["", "wall clock", "processor time of the job"],
        [[name.replace("_", " "), f"{one['wall'] * 100:.1f}%", f"{one['cpu'] * 100:.1f}%"] for name, one in results["slowdown"].items()])


def lazy_part(results, _):
    return "## Lazy restart: until the processes run\n\n" + table(
        ["MiB", "restart", "restart --lazy"], [[row["mib"], seconds(row["restart_s"]), seconds(row["lazy_s"])] for row in results["lazy"]])


def agents_part(results, _):
    return "## Simulated agents on icpctld: two-phase rounds\n\n" + table(
        ["", "agents", "round, median", "versions a second", "icpctld's memory an agent"],
        [[{"one-step": "all of one step", "one-node-steps": "each of its own step"}[row["kind"]], row["agents"], seconds(row["round_s"]),
          f"{row['versions_per_s']:.0f}", f"{row['bytes_per_agent'] / 1024:.1f} KiB"] for row in results["agents"]])


def index_part(results, out):
    found = results["index"]
    kinds = {"Radix": "page index", "Tree": "std::map", "Vector": "sorted vector"}
    text, plots = "## Page index: processor time a page\n\n", ""
    pages = sorted({int(name.rsplit("/", 1)[1]) for name in found if name.startswith("look_up")})
    rows, curves = [], {name: [] for name in kinds.values()}
    for work in ("build", "look_up", "update"):
        for number in pages:
            each = {kind: 1e9 / found[f"{work}<{kind}>/{number}"]["items_per_second"] for kind in kinds}
            rows.append([work.replace("_", "-"), f"{number:,}", *(f"{each[kind]:.1f} ns" for kind in kinds),
                         f"{each['Tree'] / each['Radix']:.1f}x"])
            if work == "look_up":
                for kind, name in kinds.items():
                    curves[name].append((number, each[kind]))
    text += table(["", "pages", *kinds.values(), "against std::map"], rows)
    disk = [(name.rsplit("/", 1)[1], one["bytes_per_page"]) for name, one in found.items() if name.startswith("on_disk")]
    text += "\n" + table(["versions of 1% at random", "bytes a page on disk"], [[number, f"{each:.2f}"] for number, each in disk])
    text += "\nstd::map and vector take 16 bytes a page and are written whole with each version.\n\n"
    plots += plot(out / "index-look-up.svg", "Look-up of one page", ("pages", "ns"), curves)
    return text + plots


def peers_part(results, _):
    rows = []
    for name, by_size in results["peers"].items():
        for mib, one in by_size.items():
            own = one["ours"]
            rows.append([name, mib, seconds(one["complete_s"]), seconds(own["complete_s"]), f"{own['complete_s'] / one['complete_s']:.2f}x",
                         seconds(one["restart_s"]), seconds(own["restart_s"]), f"{own['restart_s'] / one['restart_s']:.2f}x"])
    return "## Beside others\n\n" + table(["", "MiB", "complete", "ours", "", "restart", "ours", ""], rows)


def goals_part(results, _):
    rows = []

    def goal(what, aim, value, reached):
        rows.append([what, aim, value, GOOD if reached else BAD])

    if "sizes" in results:
        last = results["sizes"][-1]
        full, step, mib = last["full"], last["incremental"], last["mib"]
        goal(f"stop, {mib} MiB, 1% written", "under 5 ms", seconds(step["stop_s"]), step["stop_s"] < 0.005)
        goal(f"stop, first version, {mib} MiB", "under 50 ms", seconds(full["stop_s"]), full["stop_s"] < 0.05)
        ratio = last["plain_write_s"] / full["total_s"]
        goal(f"image complete, full, {mib} MiB, against a plain write", "at least 0.8x its speed", f"{ratio:.2f}x", ratio >= 0.8)
        time_ratio, size_ratio = full["total_s"] / step["total_s"], full["bytes"] / step["bytes"]
        goal("incremental, 1%: time", "at least 30x less", f"{time_ratio:.0f}x", time_ratio >= 30)
        goal("incremental, 1%: bytes", "at least 50x fewer", f"{size_ratio:.0f}x", size_ratio >= 50)
        if "criu" not in (results.get("peers") or {}):
            rows.append([f"restart, {mib} MiB, warm", "at most 0.5x CRIU", f"{seconds(last['restart_s'])}; no criu here",
                         f"{last['restart_s'] / last['plain_read_s']:.1f}x of a plain read"])
    for mib, one in (results.get("peers") or {}).get("criu", {}).items():
        own = one["ours"]
        ratio = own["complete_s"] / one["complete_s"]
        goal(f"image complete, full, {mib} MiB, against CRIU", "at most 1.0x", f"{ratio:.2f}x", ratio <= 1)
        ratio = own["restart_s"] / one["restart_s"]
        goal(f"restart, {mib} MiB, warm, against CRIU", "at most 0.5x", f"{ratio:.2f}x", ratio <= 0.5)
    if "floor" in results:
        ratio = results["floor"]["stop_s"] / results["floor"]["floor_s"]
        goal(f"stop without pre-copy, {results['floor']['mib']} MiB, 1% written, against interrupt + collect + process_vm_readv",
             "within 1.2x", f"{ratio:.2f}x", ratio <= 1.2)
    if "versions" in results:
        times = results["versions"]["restart_s"]
        spread = max(times.values()) / min(times.values()) - 1
        goal(f"restart over {', '.join(times)} versions", "within 10%", f"{spread * 100:.0f}%", spread <= 0.1)
    if "index" in results:
        found = results["index"]
        ratio = found["look_up<Radix>/1000000"]["items_per_second"] / found["look_up<Tree>/1000000"]["items_per_second"]
        goal("look-up in the page index, 1 M pages, against std::map", "at least 5x faster", f"{ratio:.1f}x", ratio >= 5)
        worst = max([one["bytes_per_page"] for name, one in found.items() if name.startswith("on_disk")] +
                    [results.get("versions", {}).get("index_bytes_per_page", 0)])
        goal("page index on disk, worst case", "at most 2 bytes a page", f"{worst:.2f}", worst <= 2)
    if "fixed" in results:
        for name, limit in (("4 MiB, 1 thread", 0.005), ("4 MiB, 64 threads", 0.015), ("100 processes", 0.1)):
            taken = results["fixed"][name]["stop_s"]
            goal(f"stop, {name}", f"under {limit * 1000:.0f} ms", seconds(taken), taken < limit)
    for name, one in results.get("many", {}).items():
        if name.split()[0] not in ("1000", "8000", "10000"):
            continue
        goal(f"stop, {name}", "under 100 ms", seconds(one["stop_s"]), one["stop_s"] < 0.1)
        goal(f"restart, {name}", "under 2 s", seconds(one["restart_s"]), one["restart_s"] < 2)
    if "slowdown" in results:
        for name, limit in (("tracking_alone", 0.02), ("60 s", 0.01)):
            if name in results["slowdown"]:
                value = results["slowdown"][name]["cpu"]
                goal(f"slowdown, {name.replace('_', ' ')}", f"under {limit * 100:.0f}%", f"{value * 100:.1f}% of processor time", value < limit)
    if "lazy" in results:
        last = results["lazy"][-1]
        goal(f"lazy restart of {last['mib']} MiB answers", "within 200 ms", seconds(last["lazy_s"]), last["lazy_s"] <= 0.2)
    if "agents" in results:
        row = next(row for row in results["agents"] if row["kind"] == "one-step")
        goal(f"a two-phase round of {row['agents']} agents", "under 1 s", seconds(row["round_s"]), row["round_s"] < 1)
    return "## Goals\n\n" + table(["what", "goal", "measured", ""], rows)


PARTS = {"limits": limits_part, "sizes": sizes_part, "shared": shared_part, "mgs": mgs_part, "floor": floor_part, "fixed": fixed_part,
         "many": many_part, "family": family_part,
         "versions": versions_part, "slowdown": slowdown_part, "lazy": lazy_part, "index": index_part, "agents": agents_part, "peers": peers_part}


def write(results, out):
    out = pathlib.Path(out)
    host = os.uname()
    text = f"# Measured {datetime.date.today()}: Linux {host.release}, {os.cpu_count()} processors\n\n"
    text += ("Written by bench/run. Medians. \"Complete\" is when all files are written, into the page cache as with the peers; \"flushed\" "
             "when they are on disk and the version is committed.\n\n")
    text += goals_part(results, out) + "\n"
    for name, part in PARTS.items():
        if name in results:
            text += part(results, out) + "\n"
    (out / "performance.md").write_text(text)
