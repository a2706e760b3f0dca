"""A short Python script that draws a figure again with seaborn, from its CSV alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator

from resflow_bench.report.drawn import axis_label

PLACED = ("mark", "marked line", "bar", "interval")  # kinds whose ends are those of an interval
PARTS = ("value", "red", "green", "blue")
MAX_ACROSS = 3


def script(figure: Figure, rows: pd.DataFrame, name: str, comments: Sequence[str]) -> str:
    """The script, to be run beside `<name>.csv`: the comments, and the rows of the figure.

    It draws the same panels, series, marks and scales; texts in the panels are left out.
    """
    has: defaultdict[str, set[str]] = defaultdict(set)
    for kind, some in rows.groupby("kind"):
        has[str(kind)] = {name for name in some if some[name].notna().any()}
    given = [_axes(ax) for ax in figure.axes]
    same = [text for text in given[0] if all(text in one for one in given)]
    differing = [", ".join(text for text in one if text not in same) for one in given]
    images = [image for ax in figure.axes for image in ax.images]
    return _TEMPLATE.render(
        name=name,
        comments=comments,
        skipped=len(comments),
        across=min(MAX_ACROSS, len(figure.axes)),
        has=has,
        upright=[kind for kind in PLACED if "y_low" in has.get(kind, ())],
        level=[kind for kind in PLACED if "x_low" in has.get(kind, ())],
        parts=[part for part in PARTS if part in has.get("pixels", ())],
        look=_look(images),
        same=", ".join(same),
        differing=differing if any(differing) else [],
    )


def _look(images: list[AxesImage]) -> str:
    """The colour map of images, and its ends where all have the same, as arguments."""
    given: dict[str, Any] = {"cmap": images[0].get_cmap().name} if images else {}
    ends = {image.get_clim() for image in images if len(image.get_size()) == 2}
    if len(ends) == 1:
        given |= zip(("vmin", "vmax"), map(float, ends.pop()), strict=True)
    return "".join(f", {name}={value!r}" for name, value in given.items())


def _axes(ax: Axes) -> list[str]:
    """Label, scale and ends of each axis, and its ticks where they are given, as arguments."""
    arguments = []
    for xy, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        given: dict[str, Any] = {"label": axis_label(ax, xy), "scale": axis.get_scale()}
        if isinstance(axis.get_major_locator(), FixedLocator):
            given["ticks"] = [float(at) for at in axis.get_ticklocs()]
            given["ticklabels"] = [text.get_text() for text in axis.get_ticklabels()]
        given["lim"] = tuple(float(f"{end:.6g}") for end in axis.get_view_interval())
        arguments += [f"{xy}{name}={value!r}" for name, value in given.items()]
    return arguments


_TEMPLATE = Environment(
    loader=PackageLoader("resflow_bench.report"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
).get_template("figure.py.j2")
