#!/usr/bin/env python3
"""The battery notices every way in which a program can differ."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import battery  # pylint: disable=wrong-import-position
import cases  # pylint: disable=wrong-import-position

CASE = cases.Case("case", ("program",), "", normalise=((r"\d+ s", "N s"),))


def Ran(status=0, stdout="output\n", stderr="", loaded=("program",)):
  return battery.Outcome(status, stdout, stderr, 0.1, set(loaded))


class JudgeTest(unittest.TestCase):

  def testTheSameTwicePasses(self):
    self.assertEqual(battery.Judge(CASE, Ran(), Ran()), [])

  def testADifferenceThatTheCaseExpectsPasses(self):
    self.assertEqual(
        battery.Judge(CASE, Ran(stdout="1 s"), Ran(stdout="22 s")), [])

  def testAnyOtherDifferenceFails(self):
    for other in (Ran(status=1), Ran(status=-6), Ran(status="timeout"),
                  Ran(stdout="outputs\n"), Ran(stderr="a warning\n"),
                  Ran(loaded=("bash",))):
      self.assertTrue(battery.Judge(CASE, Ran(), other), vars(other))

  def testACaseThatFailsOnGlibcFails(self):
    self.assertTrue(battery.Judge(CASE, Ran(status=1), Ran(status=1)))

  def testACaseWithoutOutputFails(self):
    self.assertTrue(battery.Judge(CASE, Ran(stdout=""), Ran(stdout="")))


class RunTest(unittest.TestCase):

  def setUp(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name) / "case"

  def Run(self, script, timeout_s=20, library=None):
    return battery.RunOnce(cases.Case("case", (), script), self.folder,
                           library, timeout_s)

  def testAScriptStopsAtItsFirstError(self):
    outcome = self.Run("echo first; false; echo second")
    self.assertEqual((outcome.status, outcome.stdout), (1, "first\n"))

  def testAScriptThatHangsIsEndedWithItsChildren(self):
    outcome = self.Run("echo here; sleep 60 & sleep 60", timeout_s=0.5)
    self.assertEqual((outcome.status, outcome.stdout), ("timeout", "here\n"))
    self.assertLess(outcome.seconds, 10)

  def testOnlyProgramsWithTheLibraryAreNamed(self):
    library = next(
        line.split()[-1] for line in
        pathlib.Path("/proc/self/maps").read_text().splitlines()
        if "/libm.so" in line or "/libm-" in line)
    library = pathlib.Path(library).resolve()
    outcome = self.Run("cat /dev/null; env -u LD_PRELOAD true; exec uname",
                       library=library)
    self.assertEqual(outcome.status, 0)
    self.assertTrue({"bash", "cat", "uname"} <= outcome.loaded)
    self.assertNotIn("true", outcome.loaded)


class TableTest(unittest.TestCase):

  def testNamesAreUniqueAndThereAreEnough(self):
    names = [case.name for case in cases.CASES]
    self.assertEqual(len(names), len(set(names)))
    self.assertGreaterEqual(len(names), 25)


if __name__ == "__main__":
  unittest.main()
