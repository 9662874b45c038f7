#!/usr/bin/env python3
"""Compares allocators: time, peak resident set, memory given back.

Every workload runs as a fresh process under Quarry, the C library's malloc, and
each peer: those of Debian's packages and any --peer. Rounds are interleaved and
the order of the allocators rotates, so that a slow minute of the machine falls
on all of them. Reported are medians over the rounds, ratios to the best peer,
the widest spread between quartiles in each row, and geometric means of time and
of peak resident set. In every figure less is better.
"""

import argparse
import datetime
import glob
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import figures
import machine
import page
import run
import workloads

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = ROOT / "bazel-bin" / "tools" / "benchmarks"
SUBJECT = "quarry"
DEBIAN_PEERS = {
    "jemalloc": "libjemalloc.so.2",
    "mimalloc": "libmimalloc.so.2",
    "tcmalloc": "libtcmalloc_minimal.so.4",
    "tbbmalloc": "libtbbmalloc_proxy.so.2",
}


def ParseArguments(argv):
  parser = argparse.ArgumentParser(
      prog="tools/bench", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--list", action="store_true",
                      help="name the workloads and run none")
  parser.add_argument("--group", metavar="GROUP,...", default="",
                      help="only of these: " + ", ".join(workloads.GROUPS))
  parser.add_argument("--only", metavar="NAME,...", default="",
                      help="only these workloads, or those that start so "
                      "before a *")
  parser.add_argument("--rounds", type=int, default=5, help="default: 5")
  parser.add_argument("--peer", action="append", default=[],
                      metavar="NAME=PATH.so", help="another allocator; one of "
                      "a name from Debian replaces it")
  parser.add_argument("--allocators", metavar="NAME,...", default="",
                      help="only these")
  parser.add_argument("--install", action="store_true",
                      help="install the programs of the group `programs`, too")
  parser.add_argument("--json", metavar="FILE", help="write every sample there")
  parser.add_argument("--html", metavar="FILE", help="write a page of charts")
  arguments = parser.parse_args(argv)
  if arguments.rounds < 1:
    parser.error("rounds start at 1")
  arguments.peers = dict(ParsePeer(parser, text) for text in arguments.peer)
  arguments.workloads = Choose(parser, arguments)
  return arguments


def ParsePeer(parser, text):
  name, equals, path = text.partition("=")
  if not name or not equals:
    parser.error(f"not NAME=PATH.so: {text}")
  if name in (SUBJECT, "glibc"):
    parser.error(f"{name} is no name for a peer")
  if not os.path.isfile(path):
    parser.error(f"no such library: {path}")
  return name, os.path.abspath(path)


def Choose(parser, arguments):
  groups = [group for group in arguments.group.split(",") if group]
  names = [name for name in arguments.only.split(",") if name]
  for group in groups:
    if group not in workloads.GROUPS:
      parser.error(f"no group {group}")

  def Matches(workload, name):
    if name.endswith("*"):
      return workload.name.startswith(name[:-1])
    return workload.name == name

  for name in names:
    if not any(Matches(workload, name) for workload in workloads.WORKLOADS):
      parser.error(f"no workload {name} (--list names them)")
  chosen = [
      workload for workload in workloads.WORKLOADS
      if (not groups or workload.group in groups) and
      (not names or any(Matches(workload, name) for name in names))]
  if not chosen:
    parser.error("no workload is left")
  return chosen


def FindAllocators(arguments):
  """{name: library}; the empty library is the C library's own malloc."""
  library = subprocess.run([ROOT / "tools" / "quarry", "lib"], text=True,
                           stdout=subprocess.PIPE, check=False)
  if library.returncode != 0:
    sys.exit(2)  # It has said why.
  allocators = {SUBJECT: library.stdout.strip(), "glibc": ""}
  for name, soname in DEBIAN_PEERS.items():
    found = glob.glob(f"/usr/lib/*/{soname}")
    if found:
      allocators[name] = found[0]
  allocators.update(arguments.peers)
  wanted = [name for name in arguments.allocators.split(",") if name]
  for name in wanted:
    if name not in allocators:
      print(f"tools/bench: no allocator {name}", file=sys.stderr)
      sys.exit(2)
  return {name: path for name, path in allocators.items()
          if not wanted or name in wanted}


class Progress:
  """One line on stderr for each run: where we are, and the time left."""

  def __init__(self, chosen, runs_of_each):
    self._left = {workload.name: runs_of_each for workload in chosen}
    self._total = sum(self._left.values())
    self._taken = {}  # Seconds of the latest run of each workload.

  def Show(self, what):
    line = f"[{1 - sum(self._left.values()) / self._total:4.0%}] {what}"
    if self._taken:
      usual = sum(self._taken.values()) / len(self._taken)
      seconds = sum(runs * self._taken.get(name, usual)
                    for name, runs in self._left.items())
      line += f", about {seconds // 60:.0f} min {seconds % 60:.0f} s left"
    if sys.stderr.isatty():
      line = f"\r\033[K{line}"
    print(line, end="" if sys.stderr.isatty() else "\n", file=sys.stderr,
          flush=True)

  def Done(self, workload, seconds):
    self._left[workload] -= 1
    self._taken[workload] = seconds

  def End(self):
    if sys.stderr.isatty():
      print("\r\033[K", end="", file=sys.stderr, flush=True)


def RunAll(runner, chosen, allocators, rounds):
  """(figures, series, failures, noise) of all runs."""
  found = {}     # {(workload, figure's name, unit): figure}
  series = {}    # {workload: {allocator: lines}}
  failures = {}  # {(workload, allocator): why}
  noise = machine.Noise()
  progress = Progress(chosen, rounds * len(allocators))
  for round_index in range(rounds):
    for index, workload in enumerate(chosen):
      noise.Calibrate()
      order = figures.Rotated(list(allocators), round_index + index)
      for name in order:
        progress.Show(f"round {round_index + 1} of {rounds}: {workload.name} "
                      f"under {name}")
        start = time.monotonic()
        if (workload.name, name) not in failures:
          try:
            values, lines = runner.Run(workload, allocators[name])
          except run.Failed as failure:
            failures[workload.name, name] = str(failure)
            values = []
          for figure, kind, unit, value in values:
            found.setdefault((workload.name, figure, unit), {
                "workload": workload.name, "group": workload.group,
                "name": figure, "kind": kind, "unit": unit, "samples": {},
            })["samples"].setdefault(name, []).append(value)
          if values and workload.series:
            series.setdefault(workload.name, {})[name] = lines
        progress.Done(workload.name, time.monotonic() - start)
  progress.End()
  # What failed once is not to be trusted in the other rounds.
  for (workload, allocator) in failures:
    for figure in found.values():
      if figure["workload"] == workload:
        figure["samples"].pop(allocator, None)
  return (list(found.values()), series,
          [{"workload": workload, "allocator": allocator, "why": why}
           for (workload, allocator), why in failures.items()], noise.Report())


def Select(results, kind, groups):
  return [figure for figure in results["figures"]
          if figure["kind"] == kind and figure["group"] in groups]


# The scenarios of this group print what matters themselves: their times are of
# operations that few programs do, their peaks by design.
_USUAL_GROUPS = [group for group in workloads.GROUPS if group != "memory"]


def Tables(results):
  """[(title, figures)] in the order in which they are shown."""
  tables = [(title, Select(results, "time", [group]))
            for group, title in workloads.GROUPS.items()]
  tables += [
      ("Fast paths, in times of the least possible",
       Select(results, "limit", workloads.GROUPS)),
      ("Memory that stays", Select(results, "memory", workloads.GROUPS)),
      ("System calls in steady state",
       Select(results, "calls", workloads.GROUPS)),
      ("Peak resident set", Select(results, "peak", _USUAL_GROUPS)),
  ]
  return [(title, chosen) for title, chosen in tables if chosen]


def Means(results):
  """A table: geometric means of the ratios to the best peer."""
  names = list(results["allocators"])
  peers = [name for name in names if name != SUBJECT]
  rows = [["geometric mean of ratios", *names]]
  for title, kind in (("time", "time"), ("peak resident set", "peak")):
    means = figures.MeanRatios(Select(results, kind, _USUAL_GROUPS), names,
                               peers)
    if means:
      rows.append([title, *(f"{means[name]:.2f}" for name in names)])
  return rows


def Text(results):
  names = list(results["allocators"])
  parts = []
  for title, chosen in Tables(results):
    rows = figures.Rows(chosen, names, SUBJECT)
    rows[0][0] = title
    parts.append(figures.Markdown(rows))
  means = Means(results)
  if len(means) > 1:
    parts.append(figures.Markdown(means))
  lines = [f"{failure['workload']} failed under {failure['allocator']}: "
           f"{failure['why']}" for failure in results["failures"]]
  lines += [f"{skipped['workload']} was skipped: no {skipped['program']} "
            "(--install installs it)" for skipped in results["skipped"]]
  lines.append(machine.Verdict(results["noise"]))
  return "\n\n".join(parts + ["\n".join(lines)])


def Main(argv):
  arguments = ParseArguments(argv)
  if arguments.list:
    for workload in arguments.workloads:
      print(f"{workload.group:10}  {workload.name}")
    return 0
  built = subprocess.run(["bazel", "build", "--noshow_progress",
                          "--ui_event_filters=-info",
                          "//tools/benchmarks:programs"], cwd=ROOT,
                         stdin=subprocess.DEVNULL, check=False)
  if built.returncode != 0:
    return 2
  allocators = FindAllocators(arguments)
  skipped = [{"workload": workload.name, "program": run.Missing(workload)}
             for workload in arguments.workloads if run.Missing(workload)]
  chosen = [workload for workload in arguments.workloads
            if not run.Missing(workload)]

  with tempfile.TemporaryDirectory(prefix="quarry-bench-") as scratch:
    workloads.MakeInputs(scratch)
    found, series, failures, noise = RunAll(
        run.Runner(str(BINARIES), scratch), chosen, allocators,
        arguments.rounds)
  results = {
      "when": datetime.datetime.now().astimezone().isoformat("T", "seconds"),
      "machine": machine.Describe(), "noise": noise,
      "rounds": arguments.rounds, "allocators": allocators,
      "figures": found, "series": series, "failures": failures,
      "skipped": skipped,
  }
  print(Text(results))
  if arguments.json:
    with open(arguments.json, "w", encoding="utf-8") as file:
      json.dump(results, file, indent=1)
      file.write("\n")
  if arguments.html:
    with open(arguments.html, "w", encoding="utf-8") as file:
      file.write(page.Html(results, Tables(results), Means(results), SUBJECT))
  return int(any(failure["allocator"] == SUBJECT for failure in failures))


if __name__ == "__main__":
  sys.exit(Main(sys.argv[1:]))
