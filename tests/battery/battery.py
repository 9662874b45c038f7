#!/usr/bin/env python3
"""Runs real programs on glibc's malloc and on Quarry, and compares.

Each case of cases.py is a bash script. It runs twice in a fresh folder of the
same name: once as the machine is, once with the library in LD_PRELOAD for
every process of the script. Exit status, stdout and stderr must be identical.
The dynamic loader's own log tells which programs really started with the
library, so a preload that silently failed is a failed case.
"""

import argparse
import concurrent.futures
import difflib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import cases

HERE = pathlib.Path(__file__).resolve().parent
PROGRAMS = HERE / "programs"
DIFF_LINES = 40


class Outcome:
  """What one run of a case left behind."""

  def __init__(self, status, stdout, stderr, seconds, loaded):
    self.status = status      # Exit status, or "timeout".
    self.stdout = stdout
    self.stderr = stderr
    self.seconds = seconds
    self.loaded = loaded      # Names of programs that had the library.


def Environment(folder):
  """The same for both runs, and independent of the user's own."""
  return {
      "HOME": str(folder),
      "LANG": "C.UTF-8",
      "LC_ALL": "C.UTF-8",
      "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      "PROGRAMS": str(PROGRAMS),
      "PYTHONDONTWRITEBYTECODE": "1",
      "PYTHONHASHSEED": "0",
      "TMPDIR": str(folder),
      "TZ": "UTC",
  }


def ProgramsWith(library, log_folder):
  """Names of the programs whose loader log shows the library initialised."""
  loaded = set()
  for log in log_folder.iterdir():
    text = log.read_text(encoding="utf-8", errors="replace")
    # A process that calls exec goes on in the same log.
    has_library = False
    for line in text.splitlines():
      if "calling init: " + str(library) in line:
        has_library = True
      found = re.search(r"initialize program: (.*)", line)
      if found:
        if has_library:
          loaded.add(pathlib.PurePath(found.group(1)).name)
        has_library = False
  return loaded


def RunOnce(case, folder, library, timeout_s):
  shutil.rmtree(folder, ignore_errors=True)
  work = folder / "work"
  work.mkdir(parents=True)
  logs = folder / "loader"
  logs.mkdir()

  environment = Environment(work)
  script = "set -eu\n" + case.script
  if library:
    environment.update(LD_PRELOAD=str(library), LD_DEBUG="libs",
                       LD_DEBUG_OUTPUT=str(logs / "log"))
  started = time.monotonic()
  with open(folder / "out", "w+b") as out, open(folder / "err", "w+b") as err:
    process = subprocess.Popen(
        ["/bin/bash", "-c", script], cwd=work, env=environment,
        stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        start_new_session=True)
    try:
      status = process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
      status = "timeout"
    # Nothing of a case outlives it.
    try:
      os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
    process.wait()
    seconds = time.monotonic() - started
    out.seek(0)
    err.seek(0)
    stdout = out.read().decode("utf-8", errors="replace")
    stderr = err.read().decode("utf-8", errors="replace")
  loaded = ProgramsWith(library, logs) if library else set()
  shutil.rmtree(folder, ignore_errors=True)
  return Outcome(status, stdout, stderr, seconds, loaded)


def Normalise(case, text):
  for pattern, replacement in case.normalise:
    text = re.sub(pattern, replacement, text)
  return text


def Difference(name, on_glibc, on_library):
  lines = list(difflib.unified_diff(
      on_glibc.splitlines(), on_library.splitlines(),
      f"{name} on glibc", f"{name} on the library", lineterm="", n=1))
  if len(lines) > DIFF_LINES:
    lines = lines[:DIFF_LINES] + [f"… {len(lines) - DIFF_LINES} lines more"]
  return lines


def Judge(case, on_glibc, on_library):
  """The reasons why the case fails; none when it passes."""
  reasons = []
  if on_glibc.status != case.status:
    # The case itself is broken, whatever the library does.
    reasons.append(f"status {on_glibc.status} on glibc, expected {case.status}")
    reasons += (on_glibc.stdout + on_glibc.stderr).splitlines()[-DIFF_LINES:]
  if on_library.status != on_glibc.status:
    reasons.append(f"status {on_library.status}, on glibc {on_glibc.status}")
    reasons += on_library.stderr.splitlines()[-DIFF_LINES:]
  reasons += Difference("stdout", Normalise(case, on_glibc.stdout),
                        Normalise(case, on_library.stdout))
  reasons += Difference("stderr", Normalise(case, on_glibc.stderr),
                        Normalise(case, on_library.stderr))
  if not on_glibc.stdout:
    reasons.append("no output to compare")
  for line in on_library.stderr.splitlines():
    if "LD_PRELOAD cannot be preloaded" in line:
      reasons.append(line)
      break
  for program in case.programs:
    if program not in on_library.loaded:
      seen = ", ".join(sorted(on_library.loaded)) or "none"
      reasons.append(f"{program} never started with the library; with it: {seen}")
  return reasons


def RunCase(case, scratch, library, timeout_s):
  folder = scratch / case.name
  on_glibc = RunOnce(case, folder, None, timeout_s)
  on_library = RunOnce(case, folder, library, timeout_s)
  return on_glibc, on_library, Judge(case, on_glibc, on_library)


def Main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--library", type=pathlib.Path,
                      help="the shared library to preload")
  parser.add_argument("--case", action="append", metavar="NAME",
                      help="only this case; may be repeated")
  parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1),
                      help="cases at a time (%(default)s)")
  parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS",
                      help="for one run of one case (%(default)s)")
  parser.add_argument("--list", action="store_true", help="name the cases")
  parser.add_argument("--counts", type=pathlib.Path, metavar="FILE",
                      help="also write the two counts to this file")
  arguments = parser.parse_args()

  chosen = cases.CASES
  if arguments.case:
    unknown = set(arguments.case) - {case.name for case in chosen}
    if unknown:
      parser.error(f"no such case: {', '.join(sorted(unknown))}")
    chosen = [case for case in chosen if case.name in arguments.case]
  if arguments.list:
    for case in chosen:
      print(f"{case.name:24} {', '.join(case.programs)}")
    return 0
  if not arguments.library:
    parser.error("--library is needed")
  library = arguments.library.resolve()
  if not library.is_file():
    parser.error(f"{library} is not a file")

  passed = failed = 0
  scratch = pathlib.Path(tempfile.mkdtemp(prefix="quarry-battery-"))
  try:
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
      running = {
          pool.submit(RunCase, case, scratch, library, arguments.timeout): case
          for case in chosen}
      for future in concurrent.futures.as_completed(running):
        case = running[future]
        on_glibc, on_library, reasons = future.result()
        times = f"{on_glibc.seconds:6.2f} s {on_library.seconds:6.2f} s"
        if reasons:
          failed += 1
          print(f"FAILED  {case.name:24} {times}")
          for reason in reasons:
            print(f"        {reason}")
        else:
          passed += 1
          print(f"same    {case.name:24} {times}")
        sys.stdout.flush()
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  print(f"battery: {passed} programs as on glibc, {failed} not")
  if arguments.counts:
    arguments.counts.write_text(f"{passed} {failed}\n", encoding="utf-8")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(Main())
