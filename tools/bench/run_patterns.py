#!/usr/bin/env python3
"""Compares allocators: allocation patterns, hot programs and peak resident memory.

  tools/bench/run_patterns.py quarry=PATH.so jemalloc=PATH.so ...

Every workload runs as a fresh process under each allocator (preloaded; glibc's own without a
preload), round after round, the order of the allocators rotating, so that a slow minute of the
machine falls on all of them. Reported are medians over the rounds and the ratio to the best peer of
each row. A peer is every allocator except the subject.

  patterns   nanoseconds per malloc and free, the fastest of some repetitions (see patterns --list)
  programs   CPU milliseconds of a Lua and a Python script bound by allocation, the fastest of some
             runs in each round
  memory     peak resident set in MiB of `true` and of Python importing its standard library

The programs `patterns` and `measure` come from `bazel build //tools/bench:patterns
//tools/bench:measure`, or from any folder named by --binaries.
"""

import argparse
import collections
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SECTIONS = {
    "patterns": "ns per malloc and free",
    "programs": "CPU ms",
    "memory": "peak resident set, MiB",
}
PEAK_TITLE = "peak resident set of the workloads above, MiB"

Workload = collections.namedtuple("Workload", "section name argv environment")
Sample = collections.namedtuple("Sample", "value peak_mib")


class RunFailed(Exception):
    pass


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("allocators", nargs="*", metavar="NAME=PATH.so")
    parser.add_argument("--subject", help="compared with the others (default: quarry, if given)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=7, help="of a pattern in each run")
    parser.add_argument("--program-runs", type=int, default=3, help="of a program in each round")
    parser.add_argument(
        "--statistic",
        choices=["median", "fastest"],
        default="median",
        help="of the rounds; the fastest is for a machine too busy for medians",
    )
    parser.add_argument("--clock", choices=["cpu", "wall"], help="overrides the patterns' clocks")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="default: %(default)s")
    parser.add_argument("--only", help="names of workloads, separated by commas")
    parser.add_argument("--no-glibc", action="store_true", help="leave the C library's malloc out")
    parser.add_argument("--binaries", help="folder of `patterns` and `measure`")
    parser.add_argument("--lua", default=shutil.which("lua5.4") or shutil.which("lua"))
    parser.add_argument("--python", default=os.path.realpath(sys.executable))
    parser.add_argument("--json", metavar="FILE", help="also write every sample there")
    arguments = parser.parse_args()
    if arguments.binaries is None:
        root = os.path.dirname(os.path.dirname(HERE))
        arguments.binaries = os.path.join(root, "bazel-bin", "tools", "bench")
    for program in ["patterns", "measure"]:
        if not os.access(os.path.join(arguments.binaries, program), os.X_OK):
            parser.error(f"no {program} in {arguments.binaries}: build //tools/bench:{program}")
    for section in arguments.sections.split(","):
        if section not in SECTIONS:
            parser.error(f"no section {section}")
    if min(arguments.rounds, arguments.repetitions, arguments.program_runs) < 1:
        parser.error("rounds, repetitions and runs start at 1")
    return parser, arguments


def parse_allocators(parser, arguments):
    """Name to path; the empty path is glibc, which nothing is preloaded for."""
    allocators = {} if arguments.no_glibc else {"glibc": ""}
    for argument in arguments.allocators:
        name, equals, path = argument.partition("=")
        if not equals or name in allocators:
            parser.error(f"not a new NAME=PATH.so: {argument}")
        if not os.path.isfile(path):
            parser.error(f"no such library: {path}")
        allocators[name] = os.path.abspath(path)
    if not allocators:
        parser.error("nothing to run")
    if arguments.subject is not None and arguments.subject not in allocators:
        parser.error(f"the subject {arguments.subject} is not among the allocators")
    return allocators


def list_workloads(arguments):
    patterns = os.path.join(arguments.binaries, "patterns")
    listing = subprocess.run([patterns, "--list"], check=True, capture_output=True, text=True)
    options = [f"--repetitions={arguments.repetitions}"]
    if arguments.clock:
        options.append(f"--clock={arguments.clock}")
    workloads = [
        Workload("patterns", line.split()[0], [patterns, *options, line.split()[0]], {})
        for line in listing.stdout.splitlines()
    ]
    if arguments.lua:
        script = os.path.join(HERE, "binary_trees.lua")
        workloads.append(Workload("programs", "lua_binary_trees", [arguments.lua, script], {}))
    script = os.path.join(HERE, "objects.py")
    environment = {"PYTHONMALLOC": "malloc"}
    workloads.append(
        Workload("programs", "python_objects", [arguments.python, script], environment)
    )
    workloads.append(Workload("memory", "true", ["true"], {}))
    script = os.path.join(HERE, "imports.py")
    workloads.append(Workload("memory", "python_imports", [arguments.python, script], {}))

    sections = arguments.sections.split(",")
    wanted = arguments.only.split(",") if arguments.only else None
    return [
        workload
        for workload in workloads
        if workload.section in sections and (wanted is None or workload.name in wanted)
    ]


def run_once(measure, workload, preload, report):
    """Runs a workload once; raises RunFailed when it did not run properly."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONHASHSEED": "0", **workload.environment}
    done = subprocess.run(
        [measure, report, preload, *workload.argv],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RunFailed(done.stderr.strip())
    with open(report, encoding="ascii") as file:
        status, _, cpu_ns, peak_kib = (int(word) for word in file.read().split())
    # The loader only warns and goes on with the C library's malloc.
    if status != 0 or "cannot be preloaded" in done.stderr:
        raise RunFailed(f"exit status {status} {done.stderr.strip()[-300:]}")
    peak_mib = peak_kib / 1024
    if workload.section == "patterns":
        value = float(done.stdout.split()[1])
    elif workload.section == "programs":
        value = cpu_ns / 1e6
    else:
        value = peak_mib
    return Sample(value, peak_mib)


def run_all(arguments, allocators, workloads):
    """{workload: {allocator: [sample of each round]}}, without those that failed."""
    samples = {workload.name: {name: [] for name in allocators} for workload in workloads}
    measure = os.path.join(arguments.binaries, "measure")
    names = list(allocators)
    total = arguments.rounds * len(workloads)
    start = time.monotonic()
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report")
        for round_index in range(arguments.rounds):
            for index, workload in enumerate(workloads):
                if done:
                    left = (time.monotonic() - start) / done * (total - done)
                    print(
                        f"round {round_index + 1} of {arguments.rounds}: {workload.name},"
                        f" {left:.0f} s left",
                        file=sys.stderr,
                    )
                first = (round_index + index) % len(names)
                for name in names[first:] + names[:first]:
                    if name not in samples[workload.name]:
                        continue
                    runs = arguments.program_runs if workload.section == "programs" else 1
                    try:
                        samples[workload.name][name].append(
                            min(
                                run_once(measure, workload, allocators[name], report)
                                for _ in range(runs)
                            )
                        )
                    except RunFailed as failure:
                        print(f"{workload.name} under {name}: {failure}", file=sys.stderr)
                        del samples[workload.name][name]
                done += 1
    return samples


def geometric_mean(values):
    return math.exp(statistics.fmean(math.log(value) for value in values))


def quartile_distance(values):
    if len(values) < 2:
        return 0
    low, _, high = statistics.quantiles(values, method="inclusive")
    return high - low


def print_table(title, rows, names, subject, summarize):
    """Prints `rows`, {workload: {allocator: [value of each round]}}, lower being better.

    The best peer of a row stands in bold. `spread` is the widest distance between the quartiles of
    the rounds among the row's allocators, as a part of the figure: how far to trust the row.
    """
    peers = [name for name in names if name != subject]
    ratio_column = [f"{subject} / best peer"] if subject and peers else []
    table = [[title, *names, *ratio_column, "spread"]]
    ratios = {name: [] for name in names}
    for workload, values in rows.items():
        figures = {name: summarize(values[name]) for name in values}
        best = min((figures[name] for name in peers if name in figures), default=None)
        cells = [workload]
        for name in names:
            if name not in figures:
                cells.append("failed")
                continue
            if best:
                ratios[name].append(figures[name] / best)
            mark = "**" if figures[name] == best else ""
            cells.append(f"{mark}{figures[name]:.2f}{mark}")
        if ratio_column:
            both = best and subject in figures
            cells.append(f"{figures[subject] / best:.2f}" if both else "")
        spread = max(
            (quartile_distance(values[name]) / figures[name] for name in values), default=0
        )
        table.append([*cells, f"{spread:.0%}"])
    if peers:
        means = [f"{geometric_mean(ratios[name]):.2f}" if ratios[name] else "" for name in names]
        closing = [means[names.index(subject)]] if ratio_column else []
        table.append(["geometric mean of ratios", *means, *closing, ""])

    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for number, row in enumerate(table):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            rules = ["-" * (widths[0] + 2)] + ["-" * (width + 1) + ":" for width in widths[1:]]
            print("|" + "|".join(rules) + "|")
    print(flush=True)


def main():
    parser, arguments = parse_arguments()
    allocators = parse_allocators(parser, arguments)
    workloads = list_workloads(arguments)
    if not workloads:
        parser.error("no workload of that name")
    subject = arguments.subject or ("quarry" if "quarry" in allocators else None)
    names = list(allocators)
    summarize = statistics.median if arguments.statistic == "median" else min

    samples = run_all(arguments, allocators, workloads)
    sections = [section for section in SECTIONS if any(w.section == section for w in workloads)]
    for section in sections:
        rows = {
            workload.name: {
                name: [sample.value for sample in taken]
                for name, taken in samples[workload.name].items()
            }
            for workload in workloads
            if workload.section == section
        }
        print_table(SECTIONS[section], rows, names, subject, summarize)
    timed = [workload.name for workload in workloads if workload.section != "memory"]
    if timed:
        rows = {
            workload: {
                name: [sample.peak_mib for sample in taken]
                for name, taken in samples[workload].items()
            }
            for workload in timed
        }
        print_table(PEAK_TITLE, rows, names, subject, summarize)

    if arguments.json:
        document = {
            "rounds": arguments.rounds,
            "repetitions": arguments.repetitions,
            "subject": subject,
            "workloads": [
                {
                    "name": workload.name,
                    "section": workload.section,
                    "unit": SECTIONS[workload.section],
                    "samples": {
                        name: [sample._asdict() for sample in taken]
                        for name, taken in samples[workload.name].items()
                    },
                }
                for workload in workloads
            ],
        }
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
