"""The table of the workloads: what runs, and how it is measured."""

import dataclasses
import pathlib
import subprocess
import sys

PROGRAMS = pathlib.Path(__file__).resolve().parent / "programs"

GROUPS = {
    "fast_path": "Fast paths",
    "patterns": "Allocation patterns",
    "one_thread": "One thread",
    "threads": "Several threads",
    "programs": "Programs",
    "memory": "Scenarios of memory",
    "calls": "System calls",
}


@dataclasses.dataclass(frozen=True)
class Workload:
  """One command line, to be run under every allocator.

  A program of ours prints `NAME VALUE UNIT` for each of its figures. Any other
  is measured from outside, by `clock`.
  """
  name: str
  group: str
  argv: tuple              # A first word of ./ is one of our programs; {inputs}
                           # is the folder of MakeInputs().
  clock: str = ""          # "cpu" or "wall", of a program that prints nothing.
  environment: tuple = ()  # (name, value) pairs.
  needs: tuple = ()        # Programs on PATH; without them it is skipped.
  # Of "calls": a command that does the same for longer, and by how much.
  repeated: tuple = ()
  more_millions: float = 0  # Operations.
  series: bool = False     # Writes SECONDS,RESIDENT,LIVE lines to $SERIES.


def Pattern(name):
  return Workload(name, "patterns", ("./patterns", name))


def OneThread(name, *argv):
  return Workload(name, "one_thread", ("./one_thread/" + argv[0], *argv[1:]))


def Threads(name, *argv):
  return Workload(name, "threads", ("./threads/" + argv[0], *argv[1:]))


def Program(name, argv, clock="cpu", needs=(), environment=()):
  return Workload(name, "programs", argv, clock=clock,
                  needs=needs or argv[:1], environment=environment)


def Memory(name, *argv):
  return Workload(name, "memory", ("./memory/" + argv[0], *argv[1:]))


def Calls(name, argv, repeated, more_millions):
  return Workload(name + "_calls", "calls", argv, needs=("strace",),
                  repeated=repeated, more_millions=more_millions)


WORKLOADS = (
    Workload("fast_path", "fast_path",
             ("./fast_path/fast_path", "--benchmark_min_time=0.1")),

    Pattern("pair16"),
    Pattern("pair_random"),
    Pattern("batch100_32"),
    Pattern("batch1m_48_order"),
    Pattern("batch1m_48_random"),
    Pattern("replace_1k_8k"),
    Pattern("replace_256_64k"),
    Pattern("replace_128k_527"),
    Pattern("replace_1m_143"),
    Pattern("hot_objects"),
    Pattern("producer_consumer"),
    Pattern("two_threads_churn"),

    OneThread("flat_hash_map", "containers", "flat_hash_map"),
    OneThread("map", "containers", "map"),
    OneThread("list", "containers", "list"),
    OneThread("trees", "trees"),
    OneThread("documents", "documents"),
    OneThread("key_value", "key_value"),
    OneThread("lifetimes", "lifetimes"),
    OneThread("vectors_calloc", "vectors", "calloc"),
    OneThread("vectors_realloc", "vectors", "realloc"),
    OneThread("sized_delete", "sized_delete"),
    OneThread("fork_server", "fork_server"),

    Threads("server_2", "server", "2"),
    Threads("server_8", "server", "8"),
    Threads("queues_1_to_1", "queues", "1", "1"),
    Threads("queues_1_to_7", "queues", "1", "7"),
    Threads("queues_7_to_1", "queues", "7", "1"),
    Threads("queues_2_to_6", "queues", "2", "6"),
    Threads("false_sharing_active_2", "false_sharing", "active", "2"),
    Threads("false_sharing_active_8", "false_sharing", "active", "8"),
    Threads("false_sharing_passive_2", "false_sharing", "passive", "2"),
    Threads("false_sharing_passive_8", "false_sharing", "passive", "8"),
    Threads("thread_churn_2", "thread_churn", "2"),
    Threads("thread_churn_8", "thread_churn", "8"),
    Threads("fork_join_2", "fork_join", "2"),
    Threads("fork_join_8", "fork_join", "8"),
    Threads("large_buffers_2", "large_buffers", "2"),
    Threads("large_buffers_8", "large_buffers", "8"),

    Program("redis", ("bash", f"{PROGRAMS}/redis.sh"), "",
            needs=("redis-server", "redis-benchmark", "redis-cli")),
    Program("sqlite3", ("sqlite3", ":memory:", f".read {PROGRAMS}/store.sql")),
    Program("gcc", ("g++", "-std=c++20", "-O1", "-c",
                    f"{PROGRAMS}/templates.cc", "-o", "templates.o")),
    Program("ghostscript", ("gs", "-q", "-dNOPAUSE", "-dBATCH", "-dSAFER",
                            "-sDEVICE=ppmraw", "-r150",
                            "-sOutputFile=/dev/null",
                            f"{PROGRAMS}/drawing.ps")),
    Program("z3", ("z3", f"{PROGRAMS}/puzzle.smt2")),
    # One file for all runs, which is what xz writes beside its input.
    Program("xz", ("xz", "--keep", "--force", "--threads=2", "-2",
                   "{inputs}/text")),
    Program("lua_binary_trees", ("lua5.4", f"{PROGRAMS}/binary_trees.lua")),
    Program("python_objects", ("/usr/bin/python3", f"{PROGRAMS}/objects.py"),
            environment=(("PYTHONMALLOC", "malloc"),)),
    Program("python_imports", ("/usr/bin/python3", f"{PROGRAMS}/imports.py")),
    Program("true", ("true",), "wall"),

    Memory("return", "return"),
    Memory("free_only", "free_only"),
    Memory("idle_threads_keep", "idle_threads", "keep"),
    Memory("idle_threads_half", "idle_threads", "half"),
    Memory("calloc_1g", "huge", "calloc_1g"),
    Memory("alternate_800k", "huge", "alternate_800k"),
    Memory("realloc_double_ends", "huge", "realloc_double", "ends"),
    Memory("realloc_double_all", "huge", "realloc_double", "all"),
    Memory("realloc_1_2_ends", "huge", "realloc_1_2", "ends"),
    Memory("realloc_1_2_all", "huge", "realloc_1_2", "all"),
    # A fiftieth of the program's own count: a run of seconds, not minutes.
    Memory("large_remote", "large_remote", "20000"),
    Memory("limits", "limits"),
    Workload("day", "memory", ("./memory/day", "60"), series=True),

    # The difference between two runs has no start-up in it.
    Calls("pair16", ("./patterns", "--repetitions=1", "pair16"),
          ("./patterns", "--repetitions=2", "pair16"), 4),
    Calls("pair_random", ("./patterns", "--repetitions=1", "pair_random"),
          ("./patterns", "--repetitions=2", "pair_random"), 4),
    Calls("replace_1k_8k", ("./patterns", "--repetitions=1", "replace_1k_8k"),
          ("./patterns", "--repetitions=2", "replace_1k_8k"), 1),
    Calls("alternate_800k", ("./memory/huge", "alternate_800k", "100"),
          ("./memory/huge", "alternate_800k", "300"), 0.02),
)


def MakeInputs(folder):
  """Writes what the programs work on and is too large to keep."""
  subprocess.run([sys.executable, PROGRAMS / "text.py",
                  pathlib.Path(folder) / "text", "6"], check=True)
