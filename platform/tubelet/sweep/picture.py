"""The results as a picture: the page's parallel coordinates, for where no page can be shown."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from tubelet.sweep.page import INK, LINE, QUIET, Results, axes, short, threads

_DPI = 110


def picture(results: Results) -> bytes:
    """PNG of the chart."""
    shown = axes(results)
    figure = Figure(figsize=(max(6.0, 2.2 * len(shown)), 4.2), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    plot = figure.add_axes((0.07, 0.06, 0.86, 0.74))
    plot.set_axis_off()
    plot.set_xlim(0, max(1, len(shown) - 1))
    plot.set_ylim(-0.02, 1.02)
    for thread in threads(results):
        best = thread.trial.number == results.best
        plot.plot(
            range(len(thread.places)),
            thread.places,
            color=thread.colour,
            linewidth=3.0 if best else 1.3,
            linestyle="-" if thread.trial.status == "finished" else (0, (4, 3)),
            clip_on=False,
        )
    for index, axis in enumerate(shown):
        last = index == len(shown) - 1
        plot.plot([index, index], [0, 1], color=LINE, linewidth=1, zorder=0, clip_on=False)
        plot.text(index, 1.07, axis.title, ha="center", color=INK, fontsize=8, weight="bold")
        for level, text in axis.marks:
            shown_text, side = (f" {text}", "left") if last else (f"{text} ", "right")
            mark = plot.text(
                index, level, shown_text, ha=side, va="center", color=QUIET, fontsize=7
            )
            mark.set_path_effects([withStroke(linewidth=3, foreground="white")])
    best = next((t for t in results.trials if t.number == results.best), None)
    title = f"{results.name}: {len(results.trials)} trials"
    if best is not None and best.value is not None:
        title += f"; best is trial {best.number}, {results.metric} {short(best.value)}"
    figure.text(0.02, 0.94, title, color=INK, fontsize=10, weight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
