"""What is computed from samples: medians, spreads, ratios, means, tables.

In every figure less is better. A figure is a dictionary:

  workload, group, name   whose it is; a workload has one or more
  kind                    "time", "limit", "memory", "peak" or "calls"
  unit                    "ns", "ms", "limits", "MiB", "x" or "per M"
  samples                 {allocator: [value of each round]}
"""

import math
import statistics

# Below these, more or less is the same for all: ratios do not look closer.
FLOORS = {"memory": 1.0, "calls": 1.0}


def Rotated(names, turn):
  """`names` in an order in which each comes first once in len(names) turns."""
  first = turn % len(names)
  return names[first:] + names[:first]


def GeometricMean(values):
  return math.exp(statistics.fmean(math.log(value) for value in values))


def Spread(values):
  """Distance between the quartiles, as a part of the median."""
  median = statistics.median(values)
  if len(values) < 2 or median <= 0:
    return 0.0
  low, _, high = statistics.quantiles(values, method="inclusive")
  return (high - low) / median


def Medians(figure):
  return {name: statistics.median(values)
          for name, values in figure["samples"].items() if values}


def Ratios(figure, peers):
  """{allocator: median / best peer's median}; empty when no peer has one."""
  floor = FLOORS.get(figure["kind"], 0.0)
  medians = {name: max(median, floor)
             for name, median in Medians(figure).items()}
  best = min((medians[name] for name in peers if name in medians), default=0)
  if best <= 0:
    return {}
  return {name: median / best for name, median in medians.items()}


def MeanRatios(figures, names, peers):
  """{allocator: geometric mean of its ratios}, over figures that all have."""
  all_ratios = [Ratios(figure, peers) for figure in figures]
  complete = [ratios for ratios in all_ratios
              if all(ratios.get(name, 0) > 0 for name in names)]
  if not complete:
    return {}
  return {name: GeometricMean([ratios[name] for ratios in complete])
          for name in names}


def Label(figure):
  if figure["kind"] == "peak" or figure["name"] == "time":
    return figure["workload"]
  return f"{figure['workload']} {figure['name']}"


def Digits(value):
  """Three significant ones."""
  if abs(value) >= 1e6:
    return f"{value:.2e}"
  if abs(value) >= 100:
    return f"{value:.0f}"
  return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def Rows(figures, names, subject):
  """The cells of a table: a heading, a line per figure, a line of means."""
  peers = [name for name in names if name != subject]
  compares = subject in names and peers
  heading = ["", "unit", *names]
  heading += [f"{subject} / best peer"] if compares else []
  rows = [[*heading, "spread"]]
  for figure in figures:
    medians = Medians(figure)
    ratios = Ratios(figure, peers)
    best = min((medians[name] for name in peers if name in medians),
               default=None)
    row = [Label(figure), figure["unit"]]
    for name in names:
      if name not in medians:
        row.append("failed")
        continue
      mark = "**" if medians[name] == best else ""
      row.append(f"{mark}{Digits(medians[name])}{mark}")
    if compares:
      row.append(f"{ratios[subject]:.2f}" if subject in ratios else "")
    spread = max((Spread(values) for values in figure["samples"].values()
                  if values), default=0)
    rows.append([*row, f"{spread:.0%}"])
  means = MeanRatios(figures, names, peers)
  if means:
    row = ["geometric mean of ratios", ""]
    row += [f"{means[name]:.2f}" for name in names]
    row += [f"{means[subject]:.2f}"] if compares else []
    rows.append([*row, ""])
  return rows


def Markdown(rows):
  """A table that reads well as text, too: all columns are padded."""
  widths = [max(len(row[column]) for row in rows)
            for column in range(len(rows[0]))]
  lines = []
  for number, row in enumerate(rows):
    cells = [row[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
    lines.append("| " + " | ".join(cells) + " |")
    if number == 0:
      rules = ["-" * (widths[0] + 2)]
      rules += ["-" * (width + 1) + ":" for width in widths[1:]]
      lines.append("|" + "|".join(rules) + "|")
  return "\n".join(lines)
