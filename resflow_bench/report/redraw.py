"""A short Python script that draws a figure again with seaborn, from its CSV alone."""

from __future__ import annotations

import pprint
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from resflow_bench.report.drawn import axis_label, groups, panels

PLACED = ("mark", "marked line", "bar", "interval")  # kinds whose ends are those of an interval
MAX_ACROSS = 3


def script(figure: Figure, rows: pd.DataFrame, name: str, comments: Sequence[str]) -> str:
    """The script, to be run beside `<name>.csv`: the comments, and the rows of the figure.

    It draws the same panels, series, marks and scales; texts in the panels are left out.
    """
    has: defaultdict[str, set[str]] = defaultdict(set)
    for kind, some in rows.groupby("kind"):
        has[str(kind)] = {name for name in some if some[name].notna().any()}
    colors = {one.series: one.color for one in groups(figure) if one.kind != "pixel"}
    images = [image for ax in figure.axes for image in ax.images]
    return _TEMPLATE.render(
        name=name,
        comments=comments,
        skipped=len(comments),
        axes=pprint.pformat(
            {title: _axes(ax) for ax, title in panels(figure).items()}, sort_dicts=False, width=98
        ),
        colors=pprint.pformat(colors, sort_dicts=False),
        across=min(MAX_ACROSS, len(figure.axes)),
        has=has,
        upright=[kind for kind in PLACED if "y_low" in has.get(kind, ())],
        level=[kind for kind in PLACED if "x_low" in has.get(kind, ())],
        colormap=images[0].get_cmap().name if images else "",
    )


def _axes(ax: Axes) -> dict[str, Any]:
    """Label, scale and ends of both axes, and ticks where they are given one by one."""
    given: dict[str, Any] = {}
    for xy, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        given[f"{xy}label"] = axis_label(ax, xy)
        given[f"{xy}scale"] = axis.get_scale()
        if isinstance(axis.get_major_locator(), FixedLocator):
            given[f"{xy}ticks"] = [float(at) for at in axis.get_ticklocs()]
            given[f"{xy}ticklabels"] = [text.get_text() for text in axis.get_ticklabels()]
        given[f"{xy}lim"] = tuple(float(f"{end:.6g}") for end in axis.get_view_interval())
    return given


_TEMPLATE = Environment(
    loader=PackageLoader("resflow_bench.report"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
).get_template("figure.py.j2")
