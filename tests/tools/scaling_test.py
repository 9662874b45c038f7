#!/usr/bin/env python3
"""tools/scaling finds locked instructions and counts those that were executed."""

import importlib.machinery
import importlib.util
import pathlib
import unittest

PATH = pathlib.Path(__file__).resolve().parents[2] / "tools" / "scaling"
LOADER = importlib.machinery.SourceFileLoader("scaling", str(PATH))
scaling = importlib.util.module_from_spec(
    importlib.util.spec_from_loader("scaling", LOADER))
LOADER.exec_module(scaling)

CODE = """
libquarry.so:     file format elf64-x86-64

0000000000001000 <quarry::A()>:
    1000:\tlock xadd %rdx,0x48(%rsi)
    1008:\txchg   %eax,(%rdi)
    100a:\txchg   %ax,%ax
    100c:\tmov    %rax,(%rdi)
"""

PROFILE = """positions: instr line
events: Ir
ob=libc.so.6
fn=memset
0x1000 0 50
ob=libquarry.so
fn=quarry::(anonymous namespace)::FreeRemoteBlock(void*, quarry::RemoteBlock, void const*)
0x1000 0 7
0x100c 0 9
cfn=quarry::PassToken(quarry::Slab*)
calls=3 0x1008
0x1000 0 400
fn=quarry::PassToken(quarry::Slab*)
0x1008 0 3
fn=quarry::MarkHeld(quarry::BlockWord)
0x1000 0 4
fn=quarry::ThreadCache::Refill(unsigned int)
0x1000 0 2
fn=quarry::ThreadCache::DrainPending()
0x1008 0 5
fn=quarry::Arena::Allocate(unsigned long, unsigned long)
0x1008 0 1
"""


class ScalingTest(unittest.TestCase):

  def testExchangesWithMemoryLockWithoutSayingSo(self):
    self.assertEqual(scaling.LockedAddresses(CODE.splitlines()),
                     {0x1000, 0x1008})

  def testTheLibrarysOwnInstructionsAreCountedByKind(self):
    self.assertEqual(
        scaling.ReadProfile(PROFILE.splitlines(), "libquarry.so",
                            {0x1000, 0x1008}),
        scaling.Counts(instructions=31, own=2, remote=19, shared=1))


if __name__ == "__main__":
  unittest.main()
