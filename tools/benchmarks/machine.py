"""What the machine is, and whether it is quiet enough to measure on."""

import hashlib
import os
import pathlib
import platform
import time

import figures

# More than this and figures that are close together say nothing.
NOISY_SPREAD = 0.05
NOISY_STEAL = 0.01
NOISY_LOAD = 0.5   # Per processor, from before the first run.

_BUFFER = bytes(8 << 20)


def Describe():
  """{what: words} for the head of a report."""
  model = "unknown"
  for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
    if line.startswith("model name"):
      model = line.partition(":")[2].strip()
      break
  pages = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
  memory_kib = int(pathlib.Path("/proc/meminfo").read_text().split()[1])
  return {
      "processor": f"{os.cpu_count()} x {model}",
      "memory": f"{memory_kib / 2**20:.0f} GiB",
      "kernel": platform.release(),
      "libc": " ".join(platform.libc_ver()),
      "huge pages": pages.read_text().strip() if pages.exists() else "none",
  }


def _Jiffies():
  """(stolen, all) time of the processors since the machine was started."""
  with open("/proc/stat", encoding="ascii") as stat:
    times = [int(word) for word in stat.readline().split()[1:9]]
  return times[7], sum(times)


class Noise:
  """Watches the machine while the workloads run.

  Calibrate() is the same work each time. What it takes differs only with what
  else the machine does.
  """

  def __init__(self):
    self._load = os.getloadavg()[0] / os.cpu_count()
    self._stolen, self._all = _Jiffies()
    self._calibrations = []

  def Calibrate(self):
    start = time.monotonic()
    hashlib.sha256(_BUFFER)
    self._calibrations.append(time.monotonic() - start)

  def Report(self):
    """{"spread", "steal", "load", "reasons"}; no reasons on a quiet machine."""
    stolen, all_time = _Jiffies()
    steal = (stolen - self._stolen) / max(all_time - self._all, 1)
    spread = figures.Spread(self._calibrations)
    reasons = []
    if spread > NOISY_SPREAD:
      reasons.append(f"the same loop took times that spread by {spread:.0%}")
    if steal > NOISY_STEAL:
      reasons.append(f"{steal:.1%} of the processors' time was stolen")
    if self._load > NOISY_LOAD:
      reasons.append(f"a load of {self._load:.1f} per processor at the start")
    return {"spread": spread, "steal": steal, "load": self._load,
            "reasons": reasons}


def Verdict(noise):
  if not noise["reasons"]:
    return "The machine was quiet."
  return "THE MACHINE WAS NOISY: " + "; ".join(noise["reasons"]) + "."
