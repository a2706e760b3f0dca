"""Implementations with the same weights, side by side: their values, gradients and costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import drawn_from, entry, name_rows
from suites.models import MAIN

MARKS = {
    "ours": (style.ACCENT, "o"),
    "normflows": (style.BLUE, "s"),
    "torchflows": (style.GREEN, "D"),
}
RATIOS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
OFFSET = 0.24  # between the marks of one line
LINE_HEIGHT = 0.52  # inches, of a mode with the marks of three implementations


@dataclass(frozen=True)
class _Panel:
    """A metric with its title and axis, the metric of its expected value, and a line to draw."""

    metric: str
    title: str
    label: str
    logarithmic: bool = True
    expected: str = ""
    line: float | str | None = None


PANELS = (
    _Panel("bias", "bias of the value", "mean − exact log-det (nat)", False, "bias_expected", 0.0),
    _Panel("gradient_error", "bias of the gradient", "‖mean − exact‖ / ‖exact‖"),
    _Panel("inverse_error", "error of the inverse", "largest ‖x̂ − x‖", line="inverse_asked"),
    _Panel("inverse_over_ours", "time of the inverse", "times ours", line=1.0),
    _Panel("time_over_ours", "time of log-prob", "times ours", line=1.0),
    _Panel("peak_over_ours", "peak memory of log-prob", "times ours", line=1.0),
    _Panel("step_over_ours", "time of a training step", "times ours", line=1.0),
    _Panel("gradient_peak_over_ours", "peak memory of a gradient", "times ours", line=1.0),
)


@drawn_from("implementation", "mode")
def side_by_side(cells: pd.DataFrame, columns: int) -> Figure | None:
    """Bias, gradient, inverse, time and memory, a line for each mode, a mark for each peer."""
    if "n_probes" in cells:
        cells = cells[cells["n_probes"] == 1]
    if cells.empty:
        return None
    cells = _one_flow(cells)
    panels = [panel for panel in PANELS if panel.metric in cells and cells[panel.metric].any()]
    if not panels:
        return None
    height = 0.95 + LINE_HEIGHT * cells["line"].nunique()
    figure, axes = style.make_panels(len(panels), columns, height=height)
    below = [_draw(ax, panel, cells) for ax, panel in zip(axes, panels, strict=True)]
    marks = {name: _mark(name) for name in _order(cells["implementation"])}
    handles = [entry(name, color, marker=m, ls="", ms=6) for name, (color, m) in marks.items()]
    if "bias_expected" in cells:
        ring = entry("mean of its formula", style.MUTED, marker="o", mfc="none", ls="", ms=9)
        handles.append(ring)
    if any(below):
        handles.append(style.below_handle("at most"))
    style.add_legend(figure, handles)
    return figure


def _one_flow(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of one flow, the trained one if any, at its largest K.

    Their `line` is the mode.
    """
    name = MAIN if (cells["model"] == MAIN).any() else cells["model"].iloc[0]
    cells = cells[cells["model"] == name]
    cells = cells[cells["lipschitz"] == cells["lipschitz"].max()]
    terms = cells.get("n_terms", pd.Series(np.nan, cells.index))
    words = [
        mode if pd.isna(n) else f"{mode},\nN = {int(n)}"
        for mode, n in zip(cells["mode"], terms, strict=True)
    ]
    return cells.assign(line=[word.replace("memory-", "memory-\n") for word in words])


def _draw(ax: Axes, panel: _Panel, cells: pd.DataFrame) -> bool:
    """Draw the panel's marks; return whether one of them stands for "here or below"."""
    some = cells.dropna(subset=[panel.metric])
    lines = list(dict.fromkeys(some["line"]))
    low, high = some[f"{panel.metric}_low"], some[f"{panel.metric}_high"]
    value = some[panel.metric]
    edge = -np.inf
    if panel.logarithmic:
        edge = style.log_axis(ax, "x", [value[value > 0], high[np.isfinite(high)]])
        if panel.line == 1.0:
            ax.set_xlim(
                -style.largest(-0.8 * low, least=-0.8), style.largest(1.25 * high, least=1.0)
            )
            ax.xaxis.set_major_locator(FixedLocator(RATIOS))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    at = np.asarray([lines.index(line) for line in some["line"]], float)
    names = _order(some["implementation"])
    place = np.asarray([names.index(name) for name in some["implementation"]])
    at += OFFSET * (place - (len(names) - 1) / 2)
    if isinstance(panel.line, float):
        ax.axvline(panel.line, color=style.INK, lw=1.0, label="equal")
    elif panel.line is not None and panel.line in some:
        requested = some[panel.line].to_numpy(float)
        half = OFFSET / 2
        ax.vlines(requested, at - half, at + half, color=style.INK, lw=1.6, label="requested")
    unresolved = panel.logarithmic & ((value <= edge) | (low <= 0)).to_numpy()
    for name in names:
        mine = (some["implementation"] == name).to_numpy()
        color, marker = _mark(name)
        resolved = mine & ~unresolved
        ends = low[resolved].clip(lower=edge), high[resolved]
        ax.hlines(at[resolved], *ends, color=color, lw=1.8, label=name)
        look: dict[str, Any] = {"color": color, "ms": 6, "mew": 0, "label": name}
        ax.plot(value[resolved], at[resolved], marker, **look)
        style.draw_edge_marks(ax, high[mine & unresolved], at[mine & unresolved], color, name)
    if panel.expected and panel.expected in some:
        look = {"color": style.MUTED, "mfc": "none", "ms": 11, "mew": 1.0}
        ax.plot(some[panel.expected], at, "o", **look, label="mean of its formula")
    name_rows(ax, lines)
    ax.set_ylim(len(lines) - 0.45, -0.55)
    ax.set(title=panel.title, xlabel=panel.label)
    if ax.get_xscale() == "linear":
        ax.locator_params(axis="x", nbins=4)
    return bool(unresolved.any())


def _order(names: pd.Series) -> list[str]:
    """Names in the order of `MARKS`, ours first; other names follow."""
    present = set(names)
    return [name for name in MARKS if name in present] + sorted(present - set(MARKS))


def _mark(name: str) -> tuple[str, str]:
    return MARKS.get(name, (style.GREY, "X"))


PICTURES = (
    Picture(
        "peers",
        side_by_side,
        "All implementations hold the same weights and are measured by the same code, on one "
        "thread; bars are 99 % intervals. Value: the mean of the estimates minus the exact "
        "log-det of the implementation's own map, in float64. The ring is the mean of the formula "
        "in its source, so that a mark inside a ring away from zero estimates another quantity "
        "than the log-det, or a truncated series. Gradient: the relative error of the mean, with "
        "a different upstream weight for each example (1, 2, 5, −1); a triangle is the upper end "
        "of an interval that contains zero. Inverse: in float64; the short upright line is the "
        "requested tolerance, where one can be requested. Its time is that of a batch of latents, "
        "with the certificate in ours, without a log-det in all. Log-prob: a call without "
        "gradients, at the implementation's own number of terms; memory-saving modes take their "
        "gradients in that call. A training step is the loss, its gradient, Adam and the update of "
        "the norms, by which ours certifies them. Measured on {hardware}.",
    ),
)
