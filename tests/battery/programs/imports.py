"""Imports the standard library, then compiles and pickles much of it."""

import ast
import importlib
import marshal
import pathlib
import pickle
import sys
import sysconfig

SKIPPED = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter",
           "lib2to3", "ensurepip", "msilib"}

names = sorted(name for name in sys.stdlib_module_names
               if not name.startswith("_") and name not in SKIPPED)
loaded = []
for name in names:
  try:
    importlib.import_module(name)
    loaded.append(name)
  except ImportError:
    pass
print(len(loaded), loaded[-1])

size = nodes = 0
folder = pathlib.Path(sysconfig.get_path("stdlib"))
for path in sorted(folder.glob("*.py"))[:60]:
  tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
  nodes += sum(1 for _ in ast.walk(tree))
  size += len(marshal.dumps(compile(tree, path.name, "exec")))
print(nodes, size)
print(len(pickle.dumps([list(range(i % 50)) for i in range(20_000)])))
