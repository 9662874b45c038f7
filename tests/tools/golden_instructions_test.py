#!/usr/bin/env python3
"""tools/golden_instructions reads callgrind's profile and tells differences."""

import importlib.machinery
import importlib.util
import pathlib
import unittest

PATH = (pathlib.Path(__file__).resolve().parents[2] / "tools" /
        "golden_instructions")
LOADER = importlib.machinery.SourceFileLoader("golden", str(PATH))
golden = importlib.util.module_from_spec(
    importlib.util.spec_from_loader("golden", LOADER))
LOADER.exec_module(golden)

PROFILE = """fn=main
20 7
cfn=counted_free
calls=10 0
30 500
fn=counted_free
40 30
cob=libquarry.so
cfn=free
calls=8 0
41 192
calls=2 0
41 208
fn=free
50 400
"""


class GoldenInstructionsTest(unittest.TestCase):

  def testOnlyWhatTheCallersCallIsCounted(self):
    self.assertEqual(golden.ReadProfile(PROFILE.splitlines()),
                     {"free": (10, 400)})

  def testTheFileIsReadAsItIsWritten(self):
    counts = {"free": 24.0, "malloc_32": 16.5}
    self.assertEqual(golden.Parse(golden.Format(counts)), counts)

  def testDifferencesNameBothCounts(self):
    self.assertEqual(
        golden.Differences({"free": 24, "same": 1, "gone": 2},
                           {"free": 25, "same": 1, "new": 3}),
        ["free: 24 -> 25 instructions", "gone: 2 -> none instructions",
         "new: none -> 3 instructions"])


if __name__ == "__main__":
  unittest.main()
