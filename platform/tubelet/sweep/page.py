"""The results as one HTML file that needs nothing else: parallel coordinates and a table.

Every trial is a line over one axis per searched key and one for the metric; the colour is the metric. Pointing at a row
or a line shows both; a click on a heading sorts the table.
"""

import html
import math
from dataclasses import dataclass

from tubelet.sweep.journal import Trial
from tubelet.sweep.space import Dimension

WIDTH, HEIGHT = 1100, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 70, 46, 24
GREY = "#c4c9cf"
INK, QUIET, LINE = "#1f2328", "#6e7781", "#d0d7de"
_SCALE = (  # matplotlib's viridis at nine places, up to where it is too light for a white page
    "#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#9bd93c", "#c2df23",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """What is shown."""

    name: str
    metric: str
    mode: str
    dimensions: tuple[Dimension, ...]
    trials: tuple[Trial, ...]
    best: int | None
    """Number of the best trial."""


@dataclass(frozen=True)
class Axis:
    """One axis: what it is called, and its marks at places from 0 (bottom) to 1."""

    title: str
    marks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Thread:
    """One trial's line: its places on the axes from the left, fewer when it has no value; and its colour."""

    trial: Trial
    places: tuple[float, ...]
    colour: str


def axes(results: Results) -> list[Axis]:
    """The searched keys, then the metric."""
    found = [Axis(d.key, _marks(d)) for d in results.dimensions]
    low, high = _span(results)
    marks = tuple((i / 4, short(low + (high - low) * i / 4)) for i in range(5))
    return [*found, Axis(results.metric, marks)]


def threads(results: Results) -> list[Thread]:
    """A line per trial, the best one last, so that it lies on top."""
    low, high = _span(results)
    found = []
    for trial in results.trials:
        places = [d.place(d.clipped(trial.values[d.key])) for d in results.dimensions]
        colour = GREY
        if trial.value is not None and trial.status != "failed":
            level = (trial.value - low) / (high - low)
            good = level if results.mode == "max" else 1 - level
            places.append(level)
            colour = _SCALE[min(len(_SCALE) - 1, int((1 - good) * len(_SCALE)))]
        found.append(Thread(trial, tuple(places), colour))
    return sorted(found, key=lambda t: (t.trial.number == results.best, t.colour != GREY))


def page(results: Results) -> str:
    """The whole file."""
    ended = sum(trial.status != "running" for trial in results.trials)
    best = next((t for t in results.trials if t.number == results.best), None)
    lead = f"{len(results.trials)} trials, {ended} ended"
    if best is not None and best.value is not None:
        values = ", ".join(f"{key} = {short(value)}" for key, value in best.values.items())
        lead += f". Best: trial {best.number}, {results.metric} {short(best.value)} ({values})"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{html.escape(results.name)}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(results.name)}</h1>",
        f"<p>{html.escape(lead)}.</p>",
        _chart(results),
        "<p class=quiet>Solid: came to its end. Dashed: stopped by the scheduler, or still running. Grey: failed, or "
        f"without a result. Dark is good ({'high' if results.mode == 'max' else 'low'} {html.escape(results.metric)})."
        "</p>",
        _table(results),
        f"<script>{_SCRIPT}</script>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def short(value: object) -> str:
    """A value as people read it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _span(results: Results) -> tuple[float, float]:
    values = [t.value for t in results.trials if t.value is not None and t.status != "failed"]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _marks(dimension: Dimension) -> tuple[tuple[float, str], ...]:
    if not dimension.is_range:
        return tuple((dimension.place(value), short(value)) for value in dimension.values)
    low, high = dimension.values
    if dimension.is_log:
        values = [low * (high / low) ** (i / 4) for i in range(5)]
    else:
        values = [low + (high - low) * i / 4 for i in range(5)]
    if dimension.kind.endswith("integer"):
        values = sorted({round(value) for value in values})
    return tuple((dimension.place(value), short(value)) for value in values)


def _chart(results: Results) -> str:
    shown = axes(results)
    across = (WIDTH - LEFT - RIGHT) / max(1, len(shown) - 1)
    tall = HEIGHT - TOP - BOTTOM

    def point(index: int, place: float) -> tuple[float, float]:
        return LEFT + index * across, TOP + (1 - place) * tall

    lines = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for thread in threads(results):
        places = " ".join(
            f"{x:.1f},{y:.1f}" for x, y in (point(i, p) for i, p in enumerate(thread.places))
        )
        classes = "line" + (" whole" if thread.trial.status == "finished" else "")
        classes += " best" if thread.trial.number == results.best else ""
        title = html.escape(f"trial {thread.trial.number}: {thread.trial.status}")
        lines.append(
            f'<polyline class="{classes}" data-trial="{thread.trial.number}" points="{places}" '
            f'stroke="{thread.colour}"><title>{title}</title></polyline>'
        )
    for index, axis in enumerate(shown):
        x, bottom = point(index, 0)
        last = index == len(shown) - 1
        lines.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom:.1f}"/>')
        place = "start" if index == 0 else "end" if last else "middle"
        edge = 8 if index == 0 else WIDTH - 8 if last else x
        lines.append(
            f'<text class="title" x="{edge:.1f}" y="20" text-anchor="{place}">{html.escape(axis.title)}</text>'
        )
        for level, text in axis.marks:
            _, y = point(index, level)
            side, anchor = (7, "start") if last else (-7, "end")
            lines.append(
                f'<text x="{x + side:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
            )
    return "\n".join([*lines, "</svg>"])


def _table(results: Results) -> str:
    keys = [d.key for d in results.dimensions]
    heads = ["trial", "run", "status", "epochs", results.metric, *keys, "remarks"]
    lines = ["<table><thead><tr>"]
    lines += [f"<th>{html.escape(head)}</th>" for head in heads]
    lines.append("</tr></thead><tbody>")
    sign = -1 if results.mode == "max" else 1

    def rank(trial: Trial) -> tuple[bool, float, int]:
        good = trial.value is not None and trial.status != "failed"
        return not good, sign * (trial.value or 0.0) if good else 0.0, trial.number

    for trial in sorted(results.trials, key=rank):
        notes = [trial.message] if trial.message else []
        notes += [f"from {c.source} at epoch {c.epochs:g}" for c in trial.changes]
        cells: list[object] = [trial.number, trial.run, trial.status, f"{trial.epochs:g}"]
        cells.append("" if trial.value is None or math.isnan(trial.value) else short(trial.value))
        cells += [short(trial.values[key]) for key in keys]
        cells.append("; ".join(notes))
        mark = ' class="best"' if trial.number == results.best else ""
        row = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
        lines.append(f'<tr{mark} data-trial="{trial.number}">{row}</tr>')
    return "\n".join([*lines, "</tbody></table>"])


_STYLE = f"""
body {{ font: 14px system-ui, sans-serif; color: {INK}; margin: 24px auto; max-width: 1140px; padding: 0 16px; }}
h1 {{ font-size: 20px; }} .quiet {{ color: {QUIET}; font-size: 12px; }}
svg {{ width: 100%; height: auto; }}
svg text {{ font-size: 11px; fill: {QUIET}; paint-order: stroke; stroke: white; stroke-width: 4px; }}
svg .title {{ font-size: 12px; fill: {INK}; font-weight: 600; }} .axis {{ stroke: {LINE}; }}
.line {{ fill: none; stroke-width: 1.6; stroke-dasharray: 5 4; opacity: .85; }}
.whole {{ stroke-dasharray: none; }} .best {{ stroke-width: 3.5; }}
svg.some .line {{ opacity: .12; }} svg.some .line.on {{ opacity: 1; stroke-width: 3.5; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th {{ cursor: pointer; text-align: left; border-bottom: 2px solid {LINE}; }}
th, td {{ padding: 4px 10px 4px 0; vertical-align: top; overflow-wrap: anywhere; }}
td {{ border-bottom: 1px solid {LINE}; }} tr.best td {{ font-weight: 600; }} tbody tr:hover {{ background: #f6f8fa; }}
"""
_SCRIPT = """
const chart = document.querySelector("svg"), body = document.querySelector("tbody");
for (const element of document.querySelectorAll("[data-trial]")) {
  const line = chart.querySelector(`.line[data-trial="${element.dataset.trial}"]`);
  element.onmouseenter = () => { chart.classList.add("some"); line.classList.add("on"); };
  element.onmouseleave = () => { chart.classList.remove("some"); line.classList.remove("on"); };
}
document.querySelectorAll("th").forEach((head, column) => {
  let up = 1;
  head.onclick = () => {
    const text = row => row.cells[column].textContent;
    const rows = [...body.rows].sort((a, b) =>
      up * (Number(text(a)) - Number(text(b)) || text(a).localeCompare(text(b))));
    up = -up;
    body.append(...rows);
  };
});
"""
