"""Launches and waits of each call, a mark for each implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import drawn_from, entry, name_rows
from suites.peers.figures import MARKS

ROW = 0.34  # inches, of a call with the marks of all implementations
PANELS = (("n_launches", "launches"), ("n_waits", "waits of the host"))


@drawn_from("n_launches", "n_waits", "architecture", "implementation", "operation")
def calls(cells: pd.DataFrame, columns: int) -> Figure:
    """Side by side, a row for each call of the architecture that most implementations have."""
    peers = cells.groupby("architecture", sort=False)["implementation"].nunique()
    cells = cells[cells["architecture"] == peers.idxmax()]
    if "mode" in cells:  # a call that peers have too is shown in their modes alone
        shared = cells["mode"].notna()
        cells = cells[shared | ~cells["operation"].isin(cells["operation"][shared])]
    labels = [
        ", ".join(str(c[axis]) for axis in ("operation", "mode") if axis in c and pd.notna(c[axis]))
        for _, c in cells.iterrows()
    ]
    names = list(dict.fromkeys(labels))
    places = np.asarray([names.index(label) for label in labels], float)
    figure, panels = style.make_panels(2, min(columns, 2), height=0.9 + ROW * len(names))
    for ax, (metric, title) in zip(panels, PANELS, strict=True):
        for implementation in dict.fromkeys(cells["implementation"]):
            mine = (cells["implementation"] == implementation).to_numpy()
            color, marker = MARKS.get(implementation, (style.GREY, "X"))
            look: dict[str, Any] = {"color": color, "ms": 6, "mew": 0, "label": implementation}
            ax.plot(cells[metric][mine], places[mine], marker, **look)
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(-0.15, style.largest(2 * cells[metric], least=2.0))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: style.power(n)))
        name_rows(ax, names)
        ax.set(title=title, xlabel="per call")
        ax.invert_yaxis()
    marks = {name: MARKS.get(name, (style.GREY, "X")) for name in cells["implementation"]}
    handles = [entry(name, color, marker=m, ls="", ms=6) for name, (color, m) in marks.items()]
    style.add_legend(figure, handles)
    return figure


PICTURES = (
    Picture(
        "launches",
        calls,
        "Left: the kernels and copies that one call queues on an accelerator. Right: how often the "
        "host waits for the accelerator in that call. A row is a call, a mark an implementation; "
        "all hold the same weights. Both are counted exactly, on a stand-in device on the CPU, for "
        "eight blocks of two hidden layers, d = 16, and eight examples. Further left is better: a "
        "launch costs a GPU's host some microseconds whatever the size of the batch, and while the "
        "host waits it queues nothing.",
    ),
)
