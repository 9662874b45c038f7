#!/usr/bin/env python3
"""Builds and tests Quarry in each configuration, then runs the battery.

Between the two, tools/golden_instructions counts what the fast paths take.

Counts test cases, as the tests themselves report them: each TEST() of
GoogleTest, each script, each program of the battery. A test that crashes, runs
out of time or does not build counts as one failure. Skipped cases are counted
apart. The last line is `N passed, M failed`.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
BATTERY = ROOT / "tests" / "battery" / "battery.py"
GOLDEN_INSTRUCTIONS = ROOT / "tools" / "golden_instructions"

# The name shown, and what Bazel is told.
CONFIGURATIONS = {
    "default": [],
    "dbg": ["--config=dbg"],
    "asan": ["--config=asan"],
    "tsan": ["--config=tsan"],
    "ubsan": ["--config=ubsan"],
    "clang-default": ["--config=clang-default"],
    "clang-dbg": ["--config=clang-dbg"],
    "clang-asan": ["--config=clang-asan"],
    "clang-tsan": ["--config=clang-tsan"],
    "clang-ubsan": ["--config=clang-ubsan"],
}

# Without --all: each sanitizer once, and the compiler that checks locks once.
# The rest finds the same faults with another compiler, and takes as long again.
USUAL = ["default", "dbg", "asan", "tsan", "clang-default"]

# The sanitizers have the debug checks, too, so that beside them dbg is for what
# they cannot run: the library as the program's malloc, and tests of which they
# leave cases out or do fewer rounds.
DBG_BESIDE_SANITIZERS = ["--test_tag_filters=preload,unsanitized"]

Counts = collections.namedtuple("Counts", "passed failed skipped")


def CountCases(xml_path):
  """The cases in one test.xml, or None when there is no such file."""
  try:
    tree = ElementTree.parse(xml_path)
  except (OSError, ElementTree.ParseError):
    return None
  passed = failed = skipped = 0
  for case in tree.iter("testcase"):
    if case.find("failure") is not None or case.find("error") is not None:
      failed += 1
    elif (case.find("skipped") is not None or
          case.get("status") == "notrun" or case.get("result") == "suppressed"):
      skipped += 1
    else:
      passed += 1
  return Counts(passed, failed, skipped)


def ReadEvents(path):
  """What Bazel's event file says: counts, and targets that did not build."""
  results = {}
  not_built = []
  with open(path, encoding="utf-8") as events:
    for line in events:
      event = json.loads(line)
      identity = event.get("id", {})
      if "testResult" in event:
        # The last attempt of a run of a shard is the one that counts.
        key = tuple(identity["testResult"].get(field)
                    for field in ("label", "run", "shard"))
        results[key] = event["testResult"]
      elif "targetCompleted" in identity:
        if not event.get("completed", {}).get("success"):
          not_built.append(identity["targetCompleted"]["label"])

  total = Counts(0, len(set(not_built)), 0)
  failed_targets = []
  for (label, _, _), result in sorted(results.items()):
    xml = [output["uri"] for output in result.get("testActionOutput", [])
           if output["name"] == "test.xml"]
    counts = None
    if xml:
      counts = CountCases(urllib.parse.unquote(
          urllib.parse.urlparse(xml[0]).path))
    if result["status"] == "PASSED":
      counts = counts or Counts(1, 0, 0)
    elif counts is None or counts.failed == 0:
      counts = Counts(counts.passed if counts else 0, 1,
                      counts.skipped if counts else 0)
    if counts.failed:
      failed_targets.append(f"{label} ({result['status'].lower()})")
    total = Counts(*map(sum, zip(total, counts)))
  failed_targets += [f"{label} (did not build)" for label in set(not_built)]
  return total, failed_targets


def RunConfiguration(name, targets, flags):
  with tempfile.TemporaryDirectory(prefix="quarry-test-") as scratch:
    events = pathlib.Path(scratch) / "events.json"
    command = ["bazel", "test", *CONFIGURATIONS[name], *flags, "--keep_going",
               "--noshow_progress", "--test_summary=none",
               "--test_output=errors", f"--build_event_json_file={events}",
               *targets]
    finished = subprocess.run(command, cwd=ROOT, text=True, errors="replace",
                              stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              check=False)
    try:
      counts, failed_targets = ReadEvents(events)
    except (OSError, json.JSONDecodeError):
      counts, failed_targets = Counts(0, 0, 0), []
  # Whatever Bazel is unhappy about must not be lost between its events.
  if finished.returncode != 0 and counts.failed == 0:
    counts = counts._replace(failed=1)
    failed_targets.append(f"bazel ended with status {finished.returncode}")
  if counts.failed:
    print(finished.stdout, flush=True)
    for target in failed_targets:
      print(f"  FAILED: {target}", flush=True)
  return counts


def RunBattery():
  built = subprocess.run([ROOT / "tools" / "quarry", "lib"], text=True,
                         stdout=subprocess.PIPE, check=False)
  if built.returncode != 0:
    return Counts(0, 1, 0)
  with tempfile.NamedTemporaryFile(mode="r", prefix="quarry-battery-") as out:
    finished = subprocess.run(
        [sys.executable, BATTERY, "--library", built.stdout.strip(),
         "--counts", out.name], check=False)
    counts = out.read().split()
  if len(counts) != 2:
    return Counts(0, 1, 0)
  passed, failed = map(int, counts)
  if finished.returncode != 0 and failed == 0:
    failed = 1
  return Counts(passed, failed, 0)


def CompareInstructions():
  """One case: the fast paths take the instructions that they should."""
  finished = subprocess.run([GOLDEN_INSTRUCTIONS], check=False)
  return Counts(0, 1, 0) if finished.returncode else Counts(1, 0, 0)


def Report(name, run):
  started = time.monotonic()
  print(f"{name}: running", flush=True)
  counts = run()
  skipped = f", {counts.skipped} skipped" if counts.skipped else ""
  print(f"{name}: {counts.passed} passed, {counts.failed} failed{skipped} "
        f"({time.monotonic() - started:.0f} s)", flush=True)
  return counts


def Main():
  parser = argparse.ArgumentParser(
      prog="tools/test", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--quick", action="store_true",
                      help="the default configuration alone")
  parser.add_argument("--all", action="store_true",
                      help="every configuration: with clang 19, too, each of "
                      "those that g++ has")
  parser.add_argument("--config", action="append", choices=CONFIGURATIONS,
                      help="only this configuration; may be repeated")
  parser.add_argument("--no-battery", action="store_true",
                      help="leave out the programs of tests/battery")
  parser.add_argument("targets", nargs="*", default=["//..."],
                      help="Bazel's targets; all by default")
  arguments = parser.parse_args()

  names = arguments.config or (
      list(CONFIGURATIONS) if arguments.all else USUAL)
  if arguments.quick:
    names = ["default"]
  total = Counts(0, 0, 0)
  for name in names:
    is_usual = names == USUAL and arguments.targets == ["//..."]
    flags = DBG_BESIDE_SANITIZERS if is_usual and name == "dbg" else []
    counts = Report(
        name, lambda: RunConfiguration(name, arguments.targets, flags))
    total = Counts(*map(sum, zip(total, counts)))
  # Of the build that is shipped; what else was asked for is not about them.
  if "default" in names and arguments.targets == ["//..."]:
    total = Counts(*map(sum, zip(
        total, Report("instructions", CompareInstructions))))
  if not arguments.quick and not arguments.no_battery:
    total = Counts(*map(sum, zip(total, Report("battery", RunBattery))))

  if total.skipped:
    print(f"{total.skipped} skipped")
  print(f"{total.passed} passed, {total.failed} failed")
  return 1 if total.failed else 0


if __name__ == "__main__":
  sys.exit(Main())
