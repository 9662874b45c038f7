"""The results as one HTML page that needs nothing from elsewhere."""

import html

import figures
import machine

_COLOURS = ("#4269d0", "#9498a0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951",
            "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 70em;
       padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: .15em .8em; text-align: right; }
td:first-child, th:first-child { text-align: left; }
th { border-bottom: 1px solid #999; }
.figures { display: grid; grid-template-columns: repeat(auto-fill,
           minmax(21em, 1fr)); gap: 1.2em 2em; }
.figure h3 { font-size: 1em; margin: 0 0 .2em; }
.figure small { color: #777; font-weight: normal; }
.line { display: grid; grid-template-columns: 6.5em 1fr; gap: .4em; }
.bar { display: inline-block; height: .8em; vertical-align: middle;
       min-width: 1px; }
.best { font-weight: bold; }
.noisy { background: #fee; padding: .5em 1em; }
svg { background: #fafafa; width: 100%; height: auto; }
"""


def _Table(rows):
  heading = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
  lines = [f"<tr>{heading}</tr>"]
  for row in rows[1:]:
    cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
    lines.append(f"<tr>{cells}</tr>")
  return "<table>" + "\n".join(lines) + "</table>"


def _Bars(figure, colours):
  medians = figures.Medians(figure)
  longest = max(medians.values(), default=0)
  best = min(medians.values(), default=0)
  lines = []
  for name, colour in colours.items():
    if name not in medians:
      text = "failed"
    else:
      median = medians[name]
      width = 75 * max(median, 0) / longest if longest > 0 else 0
      mark = ' class="best"' if median == best else ""
      text = (f'<span class="bar" style="width: {width:.1f}%; background: '
              f'{colour}"></span> <span{mark}>{figures.Digits(median)}</span>')
    lines.append(f'<div class="line"><span>{html.escape(name)}</span>'
                 f"<span>{text}</span></div>")
  return (f'<div class="figure"><h3>{html.escape(figures.Label(figure))} '
          f"<small>{figure['unit']}</small></h3>{''.join(lines)}</div>")


def _Plot(lines_by_name, colours):
  """Resident and live bytes over time, `lines` being (s, resident, live)."""
  width, height, margin = 900, 360, 50
  lines = [line for lines in lines_by_name.values() for line in lines]
  last_s = max(line[0] for line in lines) or 1
  most_mib = max(max(line[1:]) for line in lines) / 2**20 or 1

  def Points(pairs):
    return " ".join(
        f"{margin + seconds / last_s * (width - margin):.1f},"
        f"{(height - margin) * (1 - mib / most_mib) + 10:.1f}"
        for seconds, mib in pairs)

  parts = [f'<svg viewBox="0 0 {width + 10} {height}">']
  for part in range(5):
    mib = most_mib * part / 4
    y = (height - margin) * (1 - part / 4) + 10
    parts.append(f'<line x1="{margin}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" '
                 'stroke="#ddd"/>'
                 f'<text x="{margin - 5}" y="{y + 4:.1f}" font-size="11" '
                 f'text-anchor="end">{mib:.0f} MiB</text>')
    seconds = last_s * part / 4
    x = margin + (width - margin) * part / 4
    parts.append(f'<text x="{x:.1f}" y="{height - 22}" font-size="11" '
                 f'text-anchor="middle">{seconds:.0f} s</text>')
  x = margin
  for name, lines in lines_by_name.items():
    points = Points((line[0], line[1] / 2**20) for line in lines)
    parts.append(f'<polyline fill="none" stroke="{colours[name]}" '
                 f'stroke-width="1.5" points="{points}"/>'
                 f'<text x="{x}" y="{height - 5}" font-size="12" '
                 f'fill="{colours[name]}">{html.escape(name)}</text>')
    x += 95
  live = next(iter(lines_by_name.values()))
  points = Points((line[0], line[2] / 2**20) for line in live)
  parts.append(f'<polyline fill="none" stroke="black" stroke-dasharray="4" '
               f'points="{points}"/><text x="{x}" y="{height - 5}" '
               'font-size="12">live (dashed)</text></svg>')
  return "".join(parts)


def Html(results, tables, means, subject):
  """`tables` is [(title, figures)], `means` the rows of a table."""
  names = list(results["allocators"])
  colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
  noise = results["noise"]
  parts = ['<!DOCTYPE html><html lang="en"><meta charset="utf-8">'
           f"<title>Quarry and its peers</title><style>{_STYLE}</style>",
           "<h1>Quarry and its peers</h1>",
           f"<p>{html.escape(results['when'])}, {results['rounds']} rounds. ",
           html.escape("; ".join(f"{what}: {words}" for what, words in
                                 results["machine"].items())), "</p>",
           f'<p{" class=noisy" if noise["reasons"] else ""}>',
           html.escape(machine.Verdict(noise)), "</p>",
           "<p>Medians; in every figure less is better.</p>", _Table(means)]
  for title, chosen in tables:
    parts.append(f"<h2>{html.escape(title)}</h2><div class=figures>")
    parts += [_Bars(figure, colours) for figure in chosen]
    parts.append("</div><details><summary>As a table</summary>")
    parts += [_Table(figures.Rows(chosen, names, subject)), "</details>"]
  for workload, lines in results["series"].items():
    parts.append(f"<h2>{html.escape(workload)}: resident set over time</h2>")
    parts.append(_Plot(lines, colours))
  parts += [f"<p>{html.escape(failure['workload'])} failed under "
            f"{html.escape(failure['allocator'])}: "
            f"{html.escape(failure['why'])}</p>"
            for failure in results["failures"]]
  return "\n".join(parts) + "</html>\n"
