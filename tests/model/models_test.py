#!/usr/bin/env python3
"""Spin visits every state of the models, and finds a fault in every mutant."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

FOLDER = pathlib.Path(__file__).resolve().parent

# Sizes of remote_free.pml: together they have every pair of parties.
LOCAL = "THREADS=1 FREERS=2 SLAB_BLOCKS=2"
BATCH = "THREADS=1 FREERS=2 SLAB_BLOCKS=3"
STACK = "THREADS=1 FREERS=2 SLAB_BLOCKS=1 SLABS=2"
TIDY = "THREADS=2 FREERS=1 SLAB_BLOCKS=1"
ADOPT = "THREADS=2 FREERS=1 SLAB_BLOCKS=2 NO_MAINTENANCE"
LEND = "THREADS=2 FREERS=1 SLAB_BLOCKS=2 NO_MAINTENANCE LEND"
ALL = "THREADS=2 FREERS=2 SLAB_BLOCKS=2 NO_ALLOCATION ONE_LIFE"

# What is visited whole.
RUNS = [
    ("lock", ""),
    ("biased_lock", ""),
    ("maintenance", ""),
    *(("remote_free", sizes)
      for sizes in (LOCAL, BATCH, STACK, TIDY, ADOPT, LEND, ALL)),
]

# What must fail, beside the name of the mutant.
MUTANTS = {
    "lock": {
        "": "WAITER_SEIZES WAIT_WITHOUT_VALUE WAKE_BEFORE_FREE "
            "SEIZE_IN_TWO_STEPS",
    },
    "biased_lock": {
        "": "NO_FENCE LOOK_BEFORE_ENTER NO_WAIT TRY_IS_BLIND BIAS_BEFORE_WORK "
            "BIAS_IS_KEPT END_KEEPS_BIAS LEAVE_BEFORE_WORK FORK_KEEPS_INSIDE "
            "FORK_DOES_NOT_WAIT",
    },
    "maintenance": {
        "": "SLEEP_WITHOUT_LOOKING LOOK_BEFORE_ASLEEP LOOK_WITHOUT_FENCE "
            "NOTE_BEFORE_WORK NO_WAKE WAIT_WITHOUT_VALUE START_IN_TWO_STEPS "
            "FORK_FORGETS FORK_AT_ANY_MOMENT",
    },
    "remote_free": {
        LOCAL: "WORDS_BEFORE_SUMMARY",
        STACK: "UNLINK_AFTER_DRAIN",
        ADOPT: "FIRST_BY_WORD ADOPT_DRAINS STACK_STAYS_OPEN "
               "FOREIGN_IS_OWN FOREIGN_IS_DROPPED ORPHAN_UNASKED",
        LEND: "LENT_UNLOCKED OWNER_UNASKED",
    },
}

# The search ends at the first error, or when there is no new state. Deeper than
# any path of a model, and within the memory of a small machine.
DEPTH = 3_000_000
MEGABYTES = 1500
SECONDS = 600


def Search(model, defines):
  """What the verifier of one model says."""
  with tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")) as folder:
    def Run(*command):
      finished = subprocess.run(command, cwd=folder, text=True, check=False,
                                timeout=SECONDS, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
      if finished.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: status "
                             f"{finished.returncode}\n{finished.stdout}")
      return finished.stdout

    Run("spin", *(f"-D{define}" for define in defines), "-a",
        str(FOLDER / f"{model}.pml"))
    Run("gcc", "-w", "-O2" if (model, " ".join(defines)) in RUNS else "-O0",
        "-DSAFETY", f"-DMEMLIM={MEGABYTES}", "-o", "pan", "pan.c")
    return Run("./pan", f"-m{DEPTH}", "-w20")


def Errors(said):
  return int(re.search(r"errors: (\d+)", said).group(1))


def Mutants():
  for model, sizes in MUTANTS.items():
    for defines, names in sizes.items():
      for name in names.split():
        yield model, name, defines.split()


class ModelsTest(unittest.TestCase):

  def setUp(self):
    # The verifiers run beside the test, one for each processor.
    self.pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    self.addCleanup(self.pool.shutdown)

  def testEveryStateIsRight(self):
    searches = [(run, self.pool.submit(Search, run[0], run[1].split()))
                for run in RUNS]
    for (model, defines), search in searches:
      with self.subTest(model=model, defines=defines):
        said = search.result()
        print(model, defines, *re.findall(r"\d+ states, stored|errors: \d+",
                                          said), flush=True)
        self.assertEqual(Errors(said), 0, said)
        # No state was left out.
        self.assertIn("Full statespace search", said)
        for excuse in ("too small", "Search not completed", "max search depth",
                       "out of memory", "memory bound"):
          self.assertNotIn(excuse, said)

  def testEveryMutantFails(self):
    searches = [((model, name), self.pool.submit(Search, model, [name, *sizes]))
                for model, name, sizes in Mutants()]
    for (model, name), search in searches:
      with self.subTest(model=model, mutant=name):
        said = search.result()
        self.assertGreater(Errors(said), 0, said)
        # By a broken property, not by the model's own limits.
        self.assertRegex(said, r"assertion violated|invalid end state")

  def testEveryMutantOfTheModelsIsTried(self):
    for model in {model for model, _ in RUNS}:
      text = (FOLDER / f"{model}.pml").read_text()
      listed = text.split("must fail:")[1].split("*/")[0]
      self.assertEqual(
          set(re.findall(r"^ \*   ([A-Z_]+)", listed, re.MULTILINE)),
          {name for of, name, _ in Mutants() if of == model})


if __name__ == "__main__":
  if not shutil.which("spin"):
    print("SKIPPED: spin is not installed (apt-get install spin)")
    sys.exit(0)
  unittest.main()
