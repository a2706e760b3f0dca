"""A short Python script that draws a figure again with seaborn, from its CSV alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from resflow_bench.report.drawn import axis_label, panels

PLACED = ("mark", "marked line", "bar", "interval")  # kinds whose ends are those of an interval
MAX_ACROSS = 3


def script(figure: Figure, rows: pd.DataFrame, name: str, comments: Sequence[str]) -> str:
    """The script, to be run beside `<name>.csv`: the comments, and the rows of the figure.

    It draws the same panels, series, marks and scales; texts in the panels are left out.
    """
    has: defaultdict[str, set[str]] = defaultdict(set)
    for kind, some in rows.groupby("kind"):
        has[str(kind)] = {name for name in some if some[name].notna().any()}
    colors = rows.groupby("series", sort=False)["color"].first()
    images = [image for ax in figure.axes for image in ax.images]
    return _TEMPLATE.render(
        name=name,
        comments=comments,
        skipped=len(comments),
        axes={repr(title): _axes(ax) for ax, title in panels(figure).items()},
        across=min(MAX_ACROSS, len(figure.axes)),
        has=has,
        colors={repr(series): repr(color) for series, color in colors.items()},
        upright=[kind for kind in PLACED if "y_low" in has.get(kind, ())],
        level=[kind for kind in PLACED if "x_low" in has.get(kind, ())],
        colormap=images[0].get_cmap().name if images else "",
    )


def _axes(ax: Axes) -> list[str]:
    """Label, scale and ends of each axis, and its ticks where they are given, as arguments."""
    lines = []
    for xy, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        given: dict[str, Any] = {"label": axis_label(ax, xy), "scale": axis.get_scale()}
        if isinstance(axis.get_major_locator(), FixedLocator):
            given["ticks"] = [float(at) for at in axis.get_ticklocs()]
            given["ticklabels"] = [text.get_text() for text in axis.get_ticklabels()]
        given["lim"] = tuple(float(f"{end:.6g}") for end in axis.get_view_interval())
        lines.append(", ".join(f"{xy}{name}={value!r}" for name, value in given.items()))
    return lines


_TEMPLATE = Environment(
    loader=PackageLoader("resflow_bench.report"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
).get_template("figure.py.j2")
