"""The seconds that an error costs: from one draw to many, and by the fastest candidate."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from resflow_bench.analysis.words import number
from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.efficiency.comparison import (
    BASELINE,
    column,
    compared,
    of_gradient,
    reference,
    seconds_to,
)
from suites.margins import TARGET
from suites.marks import entry, name_rows

ERRORS = (1.0, 0.1, 0.01, 0.001)  # nat, at which the map gives the seconds
NOISELESS = 1e-12  # nat^2: rounding
LEAST, MOST = 1e-4, 1.0  # nat, the ends of the map
DECADES_OF_TIME = 4.5
STYLES = {
    "one remedy": (style.GREY, 0.9),
    BASELINE: (style.INK, 1.4),
    "peer": (style.BLUE, 1.6),
    "all together": (style.ORANGE, 1.4),
    "tuned": (style.ACCENT, 1.6),
    "determinant": (style.GREEN, 1.8),
}
"""Family to colour and width, in the order of drawing."""

NONE = "none"
WINNERS = (style.ORANGE, style.SKY, style.PINK, style.BROWN, style.BLUE, style.MUTED)
"""Colours in the map for candidates of a family that has its colour already."""


@style.themed
def error_against_time(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Root mean square error against seconds per example, a line for each candidate."""
    cells = compared(cells)
    groups = _groups(cells if cells.empty else cells[np.isfinite(cells["spread"])])
    if not groups:
        return None
    figure, panels = style.make_panels(len(groups), min(columns, 2), height=3.6)
    names: dict[str, Artist] = {}
    for ax, (title, some) in zip(panels, groups.items(), strict=True):
        names |= _draw_lines(ax, some)
        ax.set(title=title, xlabel="seconds per example")
    style.label_outer(panels, min(columns, 2), "root mean square error (nat)")
    band = entry("least of all", style.ACCENT, alpha=0.25, lw=6)
    floor = entry("its bias", style.MUTED, ls=":", lw=1.4)
    order = [name for family in STYLES for name in names if _family(name) == family]
    style.add_legend(figure, [*(names[name] for name in reversed(order)), band, floor])
    return figure


@style.themed
def variance_time(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Variance x time of each draw over that of the reference, sorted."""
    groups = _groups(compared(cells))
    groups = {title: some[some["spread"] > NOISELESS] for title, some in groups.items()}
    groups = {title: some for title, some in groups.items() if reference(some) is not None}
    if not groups:
        return None
    across = min(columns, 2, len(groups))
    rows = max(map(len, groups.values()))
    width = columns * style.PANEL / across
    height = 0.9 + 0.9 * style.ROW * rows
    figure, panels = style.make_panels(len(groups), across, width=width, height=height)
    for ax, (title, some) in zip(panels, groups.items(), strict=True):
        _draw_ratios(ax, some, n_ticks=3 if columns == 1 else 7)
        ax.set_title(title)
    finite = entry("finite variance", style.INK, marker="o", ls="", ms=5)
    infinite = entry("infinite: at least", style.INK, marker=">", mfc="none", ls="", ms=6)
    style.add_legend(figure, [finite, infinite])
    return figure


def gradient_variance_time(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """The same of the gradient."""
    return variance_time(of_gradient(cells), columns)


@style.themed
def winners(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """The candidate that reaches an error in the least time, a column for each model and d."""
    cells = compared(cells)
    if cells.empty:
        return None
    cells = cells[cells["finite"]]
    several = cells.groupby("model")["dim"].transform("nunique") > 1
    cells = cells.assign(_single=~several).sort_values(["_single", "model", "dim"])
    groups = [some for _, some in cells.groupby(["_single", "model", "dim"])]
    errors = np.geomspace(MOST, LEAST, 401)
    best = [_fastest(some, errors) for some in groups]
    order = list(dict.fromkeys(n for names, _ in best for n in names))
    colors = _winner_colors(order)
    width = min(columns * style.PANEL, max(1.7 * style.PANEL, 1.3 * len(groups) + 1))
    figure, (ax,) = style.make_panels(1, 1, width=width, height=3.4)
    for x, (names, seconds) in enumerate(best):
        for name in dict.fromkeys(names):
            mine = errors[[n == name for n in names]]
            step = errors[0] / errors[1]
            low = max(LEAST, mine.min() / step)
            look: dict[str, Any] = {
                "color": colors[name],
                "alpha": 0.42,
                "lw": 0,
                "zorder": 1,
                "label": name,
            }
            ax.bar(x, mine.max() - low, 0.94, low, **look)
        for error in ERRORS:
            at = int(np.abs(np.log(errors / error)).argmin())
            ax.annotate(
                _duration(seconds[at]), (x, errors[at]), (0, -9 if at == 0 else 0),
                textcoords="offset points", ha="center", va="center", size=8, color=style.INK,
            )  # fmt: skip
    style.log_axis(ax, "y", [pd.Series(errors)])
    ax.set(ylim=(LEAST, MOST), xlim=(-0.5, len(groups) - 0.5), ylabel="error (nat)")
    places = [_place(some) for some in groups]
    ax.set_xticks(range(len(groups)), places)
    ax.fmt_xdata = lambda x: ", ".join(places[round(x)].split("\n"))
    ax.tick_params(axis="x", length=0)
    ax.grid(False)
    style.add_legend(figure, [Patch(color=colors[n], alpha=0.42, lw=0, label=n) for n in order])
    return figure


def _groups(cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Title to the cells of one model at one d; a model at several d's is only on the map."""
    if cells.empty:
        return {}
    one = cells.groupby("model")["dim"].transform("nunique") == 1
    cells = cells[one] if one.any() else cells
    return {_place(some, ", "): some for _, some in cells.groupby(["model", "dim"], sort=False)}


def _place(some: pd.DataFrame, between: str = "\n") -> str:
    first = some.iloc[0]
    return f"{first['model']}{between}d = {first['dim']:g}"


def _family(name: str) -> str:
    """The candidate's family, a key of `STYLES`."""
    if re.search(r", (training|evaluation|series|memory-saving)$", name):
        return "peer"
    return next((family for family in STYLES if name.startswith(family)), "one remedy")


def _draw_lines(ax: Axes, some: pd.DataFrame) -> dict[str, Artist]:
    """Draw every candidate's line, and the least of all as a band; return the legend's entries."""
    start = float(some["seconds"].min()) / 1.6
    t = np.geomspace(start, start * 10**DECADES_OF_TIME, 150)
    top = max(1.6 * math.sqrt(float(some["spread"].max())), TARGET)
    bottom = TARGET / 10
    ax.set(xscale="log", yscale="log")
    reachable = some[some["finite"]]
    least = np.min([_error(cell, t) for _, cell in reachable.iterrows()], axis=0, initial=np.inf)
    shown = np.isfinite(least)
    band: dict[str, Any] = {"color": style.ACCENT, "alpha": 0.25, "lw": 7, "zorder": 1}
    ax.plot(t[shown], least[shown].clip(min=bottom), **band, label="least of all")
    dashed: dict[str, Any] = {"color": style.INK, "lw": 0.8, "ls": style.DASHES, "zorder": 1}
    ax.axhline(TARGET, **dashed, label=f"{TARGET:g} nat")
    handles: dict[str, Artist] = {}
    for _, cell in some.iterrows():
        family = _family(cell["name"])
        color, width = STYLES[family]
        after = t[t >= cell["seconds"]]
        error, floor = _error(cell, after), cell["floor"]
        dashes = style.DASHES if cell["name"].endswith("evaluation") else "-"
        order = 2 + list(STYLES).index(family)
        given: dict[str, Any] = {"color": color, "lw": width, "zorder": order}
        given["label"] = cell["name"]
        if cell["spread"] <= NOISELESS:
            (line,) = ax.plot(after, error.clip(min=bottom), ls=dashes, **given)
            edge = error[:1].clip(min=bottom)
            style.draw_edge_marks(ax, after[:1], edge, color, cell["name"])
        else:
            noisy = error > 1.2 * floor  # there the noise is still two thirds of the bias
            (line,) = ax.plot(after[noisy], error[noisy], ls=dashes, **given)
            ax.plot(
                after[~noisy], error[~noisy], ls=":", **given | {"label": f"{cell['name']}, bias"}
            )
            one_draw = math.hypot(math.sqrt(cell["spread"]), floor)
            ax.plot(cell["seconds"], one_draw, "o", ms=3.5, mew=0, **given)
        names = {"one remedy": "others", "tuned": family, "all together": family}
        name = names.get(family, cell["name"])
        handles[name] = entry(name, color, lw=1.8, ls=line.get_linestyle())
    style.log_axis(ax, "x", [pd.Series(t)])
    style.log_axis(ax, "y", [pd.Series([bottom, top])])
    ax.set(xlim=(t[0], t[-1]), ylim=(bottom, top))
    return handles


def _error(cell: pd.Series, t: np.ndarray) -> np.ndarray:
    """sqrt(variance / n + bias^2), n = t / seconds draws; infinite before the first."""
    n = t / cell["seconds"]
    error = np.hypot(np.sqrt(cell["spread"] / n), cell["floor"])
    return np.where(n >= 1 - 1e-9, error, np.inf)


def _draw_ratios(ax: Axes, some: pd.DataFrame, n_ticks: int) -> None:
    usual = reference(some)
    assert usual is not None  # such a group is left out
    over = usual["spread"] * usual["relative_time"]
    closed = np.isfinite(column(some, "variance_expected")) & some["finite"]
    low, high = (
        some["spread"].where(closed, some[f"variance{end}"]) * some[f"relative_time{end}"] / over
        for end in ("_low", "_high")
    )
    ratio = some["spread"] * some["relative_time"] / over
    some = some.assign(ratio=ratio, low=low, high=high)
    some = some.sort_values("ratio", ascending=False).reset_index(drop=True)
    ends = some[["ratio", "high"]].replace(np.inf, np.nan)
    values = [some["ratio"], some["low"][some["low"] > 0], ends["high"].dropna()]
    style.log_axis(ax, "x", values, n_ticks=n_ticks)
    left, right = ax.get_xlim()
    ax.set_xlim(left, right * (right / left) ** 0.22)  # room for the numbers
    ax.axvline(1, color=style.INK, lw=0.9, label=usual["name"])
    for y, row in some.iterrows():
        color = STYLES[_family(row["name"])][0]
        last = row["high"] if math.isfinite(row["high"]) else row["ratio"]
        span: dict[str, Any] = {"color": style.LINE, "lw": 5, "zorder": 1, "label": "range"}
        ax.hlines(y, min(1, row["ratio"]), max(1, row["ratio"]), **span)
        look: dict[str, Any] = {
            "color": color,
            "label": "finite variance" if row["finite"] else "infinite: at least",
        }
        ax.hlines(y, max(row["low"], left), last, lw=1.8, **look)
        marker, face = ("o", color) if row["finite"] else (">", style.PAPER)
        ax.plot(row["ratio"], y, marker, mfc=face, ms=5.5, zorder=3, **look)
        at = max(1.0, last)
        text = ("" if row["finite"] else "≥ ") + number(row["ratio"], 2)
        ax.annotate(text, (at, y), (6, 0), textcoords="offset points", va="center", size=8)
    name_rows(ax, list(some["name"]), bold=[usual["name"]])
    ours = usual["implementation"] == "ours"
    over_name = "our baseline (normflows: not measured)" if ours else usual["name"]
    ax.set_xlabel(f"variance × time, over that of\n{over_name}", loc="right")


def _fastest(some: pd.DataFrame, errors: np.ndarray) -> tuple[list[str], np.ndarray]:
    """(name, seconds per example) of the fastest candidate at each error."""
    needed = seconds_to(some, errors)
    best, seconds = needed.argmin(axis=0), needed.min(axis=0)
    named = zip(best, seconds, strict=True)
    return [some["name"].iloc[i] if math.isfinite(s) else NONE for i, s in named], seconds


def _winner_colors(names: list[str]) -> dict[str, str]:
    """The colour of its family for the first candidate of each, another colour for the next."""
    colors: dict[str, str] = {NONE: style.LINE}
    for name in names:
        own = STYLES[_family(name)][0]
        free = [c for c in (own, *WINNERS) if c not in colors.values()]
        colors.setdefault(name, free[0] if free else style.GREY)
    return colors


def _duration(seconds: float) -> str:
    """``0.17 ms``."""
    if not math.isfinite(seconds):
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.995 * size or unit == "µs":
            return f"{number(seconds / size, 2)} {unit}"
    raise AssertionError("the last unit takes all")


PICTURES = (
    Picture(
        "efficiency",
        error_against_time,
        "The error of the log-determinant against the time spent on it. A line is a candidate, an "
        "estimator with its settings. It begins with one draw, at the time of one draw per example "
        "of a batch. As draws are averaged, it falls with the square root of time until only the "
        "bias is left (dotted; where no formula gives the bias, its largest possible value). The "
        "band is the least error reached in a given time; the dashed line is 0.01 nat. A "
        "determinant is exact up to rounding from its first call on: a triangle at or below the "
        "edge. Where the variance is infinite, the line shows the variance of the draws that were "
        "made; averaging does not deliver it, and the band leaves it out. Measured on {hardware}.",
    ),
    Picture(
        "variance_time",
        variance_time,
        "Variance times time of one draw, relative to the draw that normflows trains by (our "
        "baseline is the same draw in our code): a tenth means the same error in a tenth of the "
        "time. Each remedy is shown alone, then several, then all together. Times are ratios to "
        "ten plain terms timed in turns. Bars are 99 % intervals, of the time alone where the "
        "variance is a closed form; the reference itself stands at one. A bar that ends at its "
        "mark has no upper limit. An infinite variance is shown as sampled, which is a lower "
        "limit; if the reference has one, all ratios to it are upper limits.",
    ),
    Picture(
        "gradient_variance_time",
        gradient_variance_time,
        "Variance times time of a training's gradient, relative to that of normflows' "
        "memory-saving mode (without it, of its plain one or of our baseline). The variance is "
        "that of the gradient of a batch's mean log-determinant, summed over parameters. It is "
        "sampled for every candidate, and bars are 99 % intervals of variance and time. A bar that "
        "ends at its mark has no upper limit, since a high moment is infinite; an infinite "
        "variance is shown as sampled, which is a lower limit. The determinant's gradient has no "
        "noise and is not shown; deflation and an evaluation have no gradient. Measured on "
        "{hardware}.",
    ),
    Picture(
        "winners",
        winners,
        "The fastest candidate for an error, from 1 nat at the top down to 0.0001, a column for "
        "each model and d. Its colour names it, and the number is its time per example (from "
        "variance, bias and time of a draw; candidates of infinite variance do not take part). The "
        "steep flow is untrained, with the norm of every layer at its limit, and exists at every "
        "d; fewer candidates are measured on it.",
    ),
)
