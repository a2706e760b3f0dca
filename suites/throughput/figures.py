"""Examples a second, their memory, and the share of the hardware's rate."""

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
    """Examples a second, a panel for each operation, with memory and share of the peak written."""
    operations = list(dict.fromkeys(cells["operation"]))
    rows = min(int(cells["operation"].value_counts().max()), MAX_ROWS)
    figure, panels = make_panels(len(operations), columns, height=0.8 + 0.58 * rows)
    for ax, operation in zip(panels, operations, strict=True):
        here = cells[cells["operation"] == operation].head(MAX_ROWS)
        shown = [a for a in varying(cells, axes(cells)) if a != "operation"]
        rate = here["examples_per_s"]
        places = np.arange(len(here))
        names = [label(cell, shown) for _, cell in here.iterrows()]
        costs = [_costs(cell) for _, cell in here.iterrows()]
        said = [", ".join(filter(None, pair)) for pair in zip(names, costs, strict=True)]
        ax.fmt_ydata = lambda y, said=said: said[round(y)]
        for model in dict.fromkeys(here["model"]):
            mine = (here["model"] == model).to_numpy()
            ax.barh(places[mine], rate[mine], 0.3, color=mark(model)[0], lw=0, label=model)
            low, high = (here[f"examples_per_s_{end}"][mine] for end in ("low", "high"))
            ax.hlines(places[mine], low, high, color=INK, lw=1.4, label=model)
        for place, (_, cell) in zip(places, here.iterrows(), strict=True):
            rates = ", ".join(filter(None, (f"{number(cell['examples_per_s'])} /s", costs[place])))
            text = f"{names[place]}\n{rates}"
            ax.text(0, place - 0.19, text, va="bottom", size=8, linespacing=1.25)
        ax.set(title=operation, yticks=[], ylim=(len(here) - 0.7, -0.85), xlabel="examples / s")
        ax.set_xlim(0, largest(1.05 * rate, least=1.0))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, 2)))
        ax.locator_params(axis="x", nbins=4)
        ax.spines["left"].set_visible(False)
        ax.grid(False, axis="y")
    return figure


def _costs(cell: pd.Series) -> str:
    """``5.3 MB, 5.9 % of matrix rate``, as far as they were measured."""
    n_bytes, share = (cell.get(name, math.nan) for name in ("peak_bytes", "flops_fraction"))
    memory = "" if math.isnan(n_bytes) else f"{number(n_bytes / 1e6, 2)} MB"
    rate = "" if math.isnan(share) else f"{100 * share:.1f} % of matrix rate"
    return ", ".join(filter(None, (memory, rate)))


PICTURES = (
    Picture(
        "throughput",
        rates,
        "Examples a second of each operation, a bar for each setting: longer is faster. It is the "
        "median of repeated timings; the thin line at the end of a bar is its 99 % interval. Above "
        "the bar stand the peak memory of one call, beyond that of the flow and its input, and "
        "the call's floating-point operations a second as a share of the matrix rate, which is "
        "that of a large matrix product on the same device in the same run. A low share means "
        "that the call moves numbers or waits more than it computes; one above 100 %, or a long "
        "thin line, that other work ran on the machine during one of the two timings. Measured on "
        "{hardware}.",
    ),
)
