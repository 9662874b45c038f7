#!/usr/bin/env python3
"""The counts of tools/test are honest: nothing that failed is lost."""

import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import run_tests  # pylint: disable=wrong-import-position

GOOGLETEST_XML = """<testsuites><testsuite name="Slab">
<testcase name="Passes" status="run" result="completed"/>
<testcase name="Skips" status="run" result="skipped"><skipped/></testcase>
<testcase name="IsDisabled" status="notrun" result="suppressed"/>
<testcase name="Fails" status="run" result="completed">
<failure message="1 != 2"/></testcase>
</testsuite></testsuites>"""
PASSING_XML = """<testsuites><testsuite name="Slab">
<testcase name="Passes" status="run" result="completed"/>
<testcase name="PassesToo" status="run" result="completed"/>
</testsuite></testsuites>"""


class CountsTest(unittest.TestCase):

  def setUp(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def Write(self, name, text):
    path = self.folder / name
    path.write_text(text, encoding="utf-8")
    return path

  def Result(self, label, status, xml=None, attempt=1):
    result = {"status": status, "testActionOutput": []}
    if xml:
      path = self.Write(f"{len(list(self.folder.iterdir()))}.xml", xml)
      result["testActionOutput"].append(
          {"name": "test.xml", "uri": path.as_uri()})
    return {"id": {"testResult": {"label": label, "run": 1, "shard": 1,
                                  "attempt": attempt}},
            "testResult": result}

  def Read(self, *events):
    path = self.Write("events.json", "\n".join(map(json.dumps, events)))
    return run_tests.ReadEvents(path)

  def testEveryCaseOfAFileIsCountedAsWhatItIs(self):
    path = self.Write("test.xml", GOOGLETEST_XML)
    self.assertEqual(run_tests.CountCases(path), (1, 1, 2))

  def testCasesOfAllTargetsAreSummed(self):
    counts, failed = self.Read(
        self.Result("//a", "PASSED", PASSING_XML),
        self.Result("//b", "FAILED", GOOGLETEST_XML))
    self.assertEqual(counts, (3, 1, 2))
    self.assertEqual(failed, ["//b (failed)"])

  def testACrashWithoutAFailedCaseIsOneFailure(self):
    counts, _ = self.Read(self.Result("//a", "FAILED", PASSING_XML))
    self.assertEqual(counts.failed, 1)

  def testATimeoutWithoutAReportIsOneFailure(self):
    counts, failed = self.Read(self.Result("//a", "TIMEOUT"))
    self.assertEqual(counts, (0, 1, 0))
    self.assertEqual(failed, ["//a (timeout)"])

  def testATargetThatDidNotBuildIsOneFailure(self):
    counts, failed = self.Read(
        {"id": {"targetCompleted": {"label": "//a"}}, "completed": {}})
    self.assertEqual(counts, (0, 1, 0))
    self.assertEqual(failed, ["//a (did not build)"])

  def testABuiltTargetCountsNothingByItself(self):
    counts, failed = self.Read(
        {"id": {"targetCompleted": {"label": "//a"}},
         "completed": {"success": True}})
    self.assertEqual((counts, failed), ((0, 0, 0), []))


if __name__ == "__main__":
  unittest.main()
