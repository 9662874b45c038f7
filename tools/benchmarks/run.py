"""One run of one workload under one allocator."""

import os
import shutil
import signal
import subprocess
import tempfile

TIMEOUT_S = 600

_KINDS = {"ns": "time", "ms": "time", "MiB": "memory", "x": "memory",
          "limits": "limit"}
_TRACED = "trace=mmap,munmap,mremap,madvise,brk,mprotect"


class Failed(Exception):
  """The workload did not run properly."""


class Runner:
  """Runs workloads with the programs in the folder `binaries`.

  `scratch` is a folder for reports, and has what workloads.MakeInputs() makes.
  """

  def __init__(self, binaries, scratch):
    self._binaries = binaries
    self._inputs = scratch
    self._report = os.path.join(scratch, "report")
    self._series = os.path.join(scratch, "series.csv")

  def Run(self, workload, library):
    """([(name, kind, unit, value)...], series); raises Failed.

    `library` is preloaded; the C library's own malloc serves when it is empty.
    """
    if workload.repeated:
      calls = (self._Calls(workload.repeated, library) -
               self._Calls(workload.argv, library))
      return [("time", "calls", "per M", calls / workload.more_millions)], []

    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0",
                   "SERIES": self._series, **dict(workload.environment)}
    measure = os.path.join(self._binaries, "measure")
    with tempfile.TemporaryDirectory() as folder:
      stdout, stderr = _Execute(
          [measure, self._report, library, *self._Argv(workload.argv)],
          environment, folder)
    with open(self._report, encoding="ascii") as file:
      status, wall_ns, cpu_ns, peak_kib = map(int, file.read().split())
    # The loader only warns, and goes on with the C library's malloc.
    if status != 0 or "cannot be preloaded" in stderr:
      raise Failed(f"exit status {status} {stderr.strip()[-300:]}")
    values = [("peak", "peak", "MiB", peak_kib / 1024)]
    if workload.clock:
      taken_ns = cpu_ns if workload.clock == "cpu" else wall_ns
      values.insert(0, ("time", "time", "ms", taken_ns / 1e6))
    else:
      values = _Printed(stdout, workload) + values
    return values, self._ReadSeries() if workload.series else []

  def _Argv(self, argv):
    first = argv[0]
    if first.startswith("./"):
      first = os.path.join(self._binaries, first[2:])
    return [first, *(word.replace("{inputs}", self._inputs)
                     for word in argv[1:])]

  def _Calls(self, argv, library):
    """System calls that ask for memory or give it back, of all threads."""
    preload = ["-E", "LD_PRELOAD=" + library] if library else []
    _Execute(["strace", "--seccomp-bpf", "-f", "-c", "-e", _TRACED, "-o",
              self._report, *preload, *self._Argv(argv)], os.environ, None)
    with open(self._report, encoding="ascii") as file:
      for line in file:
        words = line.split()
        if words and words[-1] == "total":
          return int(words[3])
    return 0

  def _ReadSeries(self):
    with open(self._series, encoding="ascii") as file:
      return [[float(cell) for cell in line.split(",")] for line in file]


def _Printed(stdout, workload):
  values = []
  for line in stdout.splitlines():
    name, value, unit = line.split()
    if name == workload.argv[-1]:
      name = "time"  # A pattern, which says its own name.
    values.append((name, _KINDS[unit], unit, float(value)))
  if not values:
    raise Failed("printed nothing")
  return values


def _Execute(argv, environment, folder):
  """(stdout, stderr) of a program that must succeed and end in time."""
  process = subprocess.Popen(
      argv, env=environment, cwd=folder, stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      errors="replace", start_new_session=True)
  try:
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
  except subprocess.TimeoutExpired:
    raise Failed(f"more than {TIMEOUT_S} s") from None
  finally:
    if process.returncode is None:
      os.killpg(process.pid, signal.SIGKILL)
      process.communicate()
  if process.returncode != 0:
    raise Failed(f"{argv[0]}: {stderr.strip()[-300:]}")
  return stdout, stderr


def Missing(workload):
  """The first program that the workload needs and the machine lacks."""
  for program in workload.needs:
    if shutil.which(program) is None:
      return program
  return None
