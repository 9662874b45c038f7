#!/usr/bin/env python3
"""What tools/bench computes, and what it says to a wrong command line."""

import contextlib
import io
import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "benchmarks"))
# pylint: disable=wrong-import-position
import bench
import figures
import page
import run
import workloads


def Figure(samples, kind="time", name="time", workload="pair16"):
  return {"workload": workload, "group": "patterns", "name": name,
          "kind": kind, "unit": "ns", "samples": samples}


class FiguresTest(unittest.TestCase):

  def testEachComesFirstOnceInARotation(self):
    names = ["a", "b", "c"]
    self.assertEqual([figures.Rotated(names, turn)[0] for turn in range(4)],
                     ["a", "b", "c", "a"])
    self.assertCountEqual(figures.Rotated(names, 2), names)

  def testAGeometricMeanIsSymmetricInRatios(self):
    self.assertAlmostEqual(figures.GeometricMean([2, 0.5]), 1)
    self.assertAlmostEqual(figures.GeometricMean([2, 8]), 4)

  def testTheSpreadIsBetweenQuartiles(self):
    self.assertAlmostEqual(figures.Spread([8, 9, 10, 11, 1000]), 0.2)
    self.assertEqual(figures.Spread([10]), 0)

  def testRatiosAreToTheBestPeerAndNotToTheSubject(self):
    figure = Figure({"quarry": [5], "glibc": [20], "other": [10]})
    self.assertEqual(figures.Ratios(figure, ["glibc", "other"]),
                     {"quarry": 0.5, "glibc": 2, "other": 1})

  def testNothingLeftIsNotInfinitelyBetterThanLittle(self):
    figure = Figure({"quarry": [0.5], "glibc": [0]}, kind="memory")
    self.assertEqual(figures.Ratios(figure, ["glibc"]),
                     {"quarry": 1, "glibc": 1})

  def testMeansLeaveOutWhatSomeoneFailed(self):
    names = ["quarry", "glibc"]
    chosen = [Figure({"quarry": [1], "glibc": [2]}),
              Figure({"quarry": [100]})]
    self.assertEqual(figures.MeanRatios(chosen, names, ["glibc"]),
                     {"quarry": 0.5, "glibc": 1})

  def testATableMarksTheBestPeerAndWhoFailed(self):
    rows = figures.Rows([Figure({"quarry": [5], "glibc": [10]})],
                        ["quarry", "glibc", "other"], "quarry")
    self.assertEqual(rows[1], ["pair16", "ns", "5.00", "**10.0**", "failed",
                               "0.50", "0%"])
    lines = figures.Markdown(rows).splitlines()
    self.assertEqual(len({len(line) for line in lines}), 1)

  def testThePageHasEveryAllocatorAndNothingFromElsewhere(self):
    chosen = [Figure({"a<b": [5], "glibc": [10]})]
    text = page.Html(
        {"allocators": {"a<b": "", "glibc": ""}, "when": "now", "rounds": 1,
         "machine": {}, "noise": {"reasons": []}, "failures": [],
         "series": {"day": {"glibc": [[0, 1 << 20, 0], [1, 2 << 20, 0]]}}},
        [("Patterns", chosen)], [["", "glibc"]], "quarry")
    self.assertIn("a&lt;b", text)
    self.assertIn("<polyline", text)
    self.assertNotIn("http", text)


class WorkloadsTest(unittest.TestCase):

  def testNamesAreUniqueAndGroupsExist(self):
    names = [workload.name for workload in workloads.WORKLOADS]
    self.assertEqual(len(names), len(set(names)))
    for workload in workloads.WORKLOADS:
      self.assertIn(workload.group, workloads.GROUPS)

  def testAWorkloadWhoseProgramIsMissingIsKnown(self):
    self.assertEqual(run.Missing(workloads.Workload(
        "x", "programs", ("x",), needs=("sh", "no-such-program"))),
                     "no-such-program")


class ArgumentsTest(unittest.TestCase):

  def Complaint(self, *argv):
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), self.assertRaises(
        SystemExit) as raised:
      bench.ParseArguments(argv)
    self.assertEqual(raised.exception.code, 2)
    return stderr.getvalue().splitlines()[-1]

  def testWhatIsWrongIsNamed(self):
    self.assertIn("rounds start at 1", self.Complaint("--rounds", "0"))
    self.assertIn("no group nights", self.Complaint("--group", "nights"))
    self.assertIn("no workload x ", self.Complaint("--only", "x"))
    self.assertIn("no workload is left",
                  self.Complaint("--only", "pair16", "--group", "memory"))
    self.assertIn("not NAME=PATH.so", self.Complaint("--peer", "x"))
    self.assertIn("no such library", self.Complaint("--peer", "x=/nowhere"))

  def testAPeerCannotTakeQuarrysName(self):
    with tempfile.NamedTemporaryFile() as library:
      self.assertIn("quarry is no name for a peer",
                    self.Complaint("--peer", f"quarry={library.name}"))

  def testAStarStandsForTheRestOfAName(self):
    arguments = bench.ParseArguments(["--only", "pair*", "--group", "patterns"])
    self.assertEqual([workload.name for workload in arguments.workloads],
                     ["pair16", "pair_random"])


if __name__ == "__main__":
  unittest.main()
