"""A tooltip for each mark of a figure in SVG, as its `<title>`, which needs no script."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape

import numpy as np
from matplotlib.figure import Figure

from resflow_bench.analysis.words import number, with_interval
from resflow_bench.report.drawn import MARKED, Group, axis_label, groups, panels

NEAR = 0.01  # points, between the place of a mark and that written in the SVG
INCH = 72.0  # points
TAG = re.compile(r'<g id="([^"]*)">|<use [^>]*?x="([^"]*)" y="([^"]*)"[^>]*/>')
NUMBER = re.compile(r"[\d.,e+−-]+")
LABEL = re.compile(r"(.*?) \(([^()]*)\)")
"""An axis' label, its quantity and its unit."""

Titles = tuple[np.ndarray, list[str]]
"""Places of marks in points from the upper left, (n, 2), and their tooltips."""


def titled(figure: Figure, save: Callable[[Figure], str]) -> str:
    """The SVG that `save` returns, with a tooltip for each mark and bar, and each line and band.

    A tooltip is found by the place of its mark, since matplotlib leaves some marks out, such as
    those outside the page.
    """
    several = groups(figure)
    for place, one in enumerate(several):
        for part, artist in enumerate(one.artists):
            artist.set_gid(f"group-{place}-{part}")
    markup = save(figure)  # lays the figure out
    whole, marks = _tooltips(figure, several)
    current: Titles = np.empty((0, 2)), []

    def title(tag: re.Match[str]) -> str:
        nonlocal current
        group, x, y = tag.groups()
        if group is not None:
            current = marks.get(group, (np.empty((0, 2)), []))
            return tag[0] + _element(whole.get(group, ""))
        if text := _taken(current, float(x), float(y)):
            return tag[0].replace("/>", f">{_element(text)}</use>")
        return tag[0]

    return TAG.sub(title, markup)


def _taken(titles: Titles, x: float, y: float) -> str:
    """The tooltip of the mark at this place, each once; the empty string if there is none."""
    places, texts = titles
    near = np.flatnonzero(np.abs(places - (x, y)).max(axis=1, initial=0.0) < NEAR)
    if not len(near):
        return ""
    places[near[0]] = np.nan
    return texts[near[0]]


def _element(text: str) -> str:
    return f"<title>{escape(text, quote=False)}</title>" if text else ""


def _tooltips(figure: Figure, several: list[Group]) -> tuple[dict[str, str], dict[str, Titles]]:
    """Identifiers of groups in the SVG to a tooltip for all of each, and to those of its marks."""
    titles = panels(figure) if len(figure.axes) > 1 else {}
    whole: dict[str, str] = {}
    marks: dict[str, Titles] = {}
    for place, one in enumerate(several):
        panel = titles.get(one.ax, "")
        texts = _texts(one, panel) if one.kind in MARKED else []
        if one.kind == "bar":
            whole |= {f"group-{place}-{part}": text for part, text in enumerate(texts)}
        elif texts:
            with np.errstate(all="ignore"):  # zero on a logarithmic axis
                points = one.ax.transData.transform(one.rows[["x", "y"]]) * INCH / figure.dpi
            height = figure.get_figheight() * INCH
            marks[f"group-{place}-0"] = points * (1, -1) + (0, height), texts
        if one.kind not in ("mark", "bar", "pixels"):
            whole[f"group-{place}-0"] = _joined(one.series, panel)
    return whole, marks


def _texts(one: Group, panel: str) -> list[str]:
    """A tooltip for each mark: its series, name and panel, and its coordinates with intervals."""
    names, values = zip(*(_coordinates(one, xy) for xy in "xy"), strict=True)
    return [
        f"{_joined(one.series, *name, panel)}: {_joined(*value)}"
        for name, value in zip(zip(*names, strict=True), zip(*values, strict=True), strict=True)
    ]


def _joined(*texts: str) -> str:
    """The texts, each once, without one that the next begins with."""
    kept = [*dict.fromkeys(filter(None, texts))]
    return ", ".join(a for a, b in zip(kept, [*kept[1:], ""], strict=True) if not b.startswith(a))


def _coordinates(one: Group, xy: str) -> tuple[list[str], list[str]]:
    """The name of each mark on an axis of names, or ``error = 0.12 [0.11, 0.13] nat``."""
    label = axis_label(one.ax, xy)
    quantity, unit = found.groups() if (found := LABEL.match(label)) else (label, "")
    ends = one.rows.reindex(columns=[xy, f"{xy}_low", f"{xy}_high"]).to_numpy(float)
    names, values = [], []
    for name, (value, low, high) in zip(one.named(xy), ends, strict=True):
        is_name = name is not None and not NUMBER.fullmatch(name)
        measured = name or f"{_interval(value, low, high)} {unit}".strip()
        names.append(measured if is_name else "")
        values.append("" if is_name else f"{quantity} = {measured}" if quantity else measured)
    return names, values


def _interval(value: float, low: float, high: float) -> str:
    if low < high:
        return with_interval(value, low, high)
    return f"{value:,.0f}" if value.is_integer() else number(value)
