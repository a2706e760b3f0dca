"""Examples a second, and the share of the hardware's rate."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from resflow_bench.analysis.tables import axes, label, varying
from resflow_bench.analysis.words import number
from resflow_bench.report.picture import Picture
from resflow_bench.report.style import INK, MAX_ROWS, largest, make_panels
from suites.marks import drawn_from, mark


@drawn_from("examples_per_s", "operation")
def rates(cells: pd.DataFrame, columns: int) -> Figure:
    """Examples a second, a panel for each operation, with the share of the peak written."""
    operations = list(dict.fromkeys(cells["operation"]))
    rows = min(int(cells["operation"].value_counts().max()), MAX_ROWS)
    figure, panels = make_panels(len(operations), columns, height=0.8 + 0.58 * rows)
    for ax, operation in zip(panels, operations, strict=True):
        here = cells[cells["operation"] == operation].head(MAX_ROWS)
        shown = [a for a in varying(cells, axes(cells)) if a != "operation"]
        rate = here["examples_per_s"]
        places = np.arange(len(here))
        names = [label(cell, shown) for _, cell in here.iterrows()]
        ax.fmt_ydata = lambda y, names=names: names[round(y)]
        for model in dict.fromkeys(here["model"]):
            mine = (here["model"] == model).to_numpy()
            ax.barh(places[mine], rate[mine], 0.3, color=mark(model)[0], label=model)
            low, high = (here[f"examples_per_s_{end}"][mine] for end in ("low", "high"))
            ax.hlines(places[mine], low, high, color=INK, lw=1.4, label=model)
        for place, (_, cell) in zip(places, here.iterrows(), strict=True):
            share = cell.get("flops_fraction", math.nan)
            peak = "" if math.isnan(share) else f" · {100 * share:.1f} % of peak"
            text = f"{names[place]}\n{number(cell['examples_per_s'])} /s{peak}"
            ax.text(0, place - 0.19, text, va="bottom", size=8, linespacing=1.25)
        ax.set(title=operation, yticks=[], ylim=(len(here) - 0.7, -0.85), xlabel="examples / s")
        ax.set_xlim(0, largest(1.05 * rate, least=1.0))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, 2)))
        ax.locator_params(axis="x", nbins=4)
        ax.spines["left"].set_visible(False)
        ax.grid(False, axis="y")
    return figure


PICTURES = (
    Picture(
        "throughput",
        rates,
        "Examples a second of each operation, a bar for each setting: longer is faster. It is the "
        "median of repeated timings; the thin line at the end of a bar is its 99 % interval. The "
        "share of the peak says how well the hardware is used. The peak is the rate of a large "
        "matrix product measured in the same run: a share above 100 %, or a long thin line, means "
        "that other work ran on the machine during one of the two timings.",
    ),
)
