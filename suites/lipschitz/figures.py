"""The constants of a branch: promised, certified, realised."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resflow_bench.analysis.tables import varying
from resflow_bench.analysis.words import measured
from resflow_bench.report.picture import Picture
from resflow_bench.report.style import (
    ACCENT,
    BLUE,
    GREEN,
    INK,
    LINE,
    MAX_ROWS,
    PAPER,
    PINK,
    add_legend,
    themed,
)
from suites.marks import MODELS, make_rows

CONSTANTS = {
    "lipschitz_promised": ("promised", INK, "|"),
    "lipschitz_certified": ("certified", BLUE, "D"),
    "lipschitz_realised": ("realised ‖J‖₂", ACCENT, "o"),
    "spectral_radius": ("spectral radius ρ", GREEN, "X"),
}
UNALIGNED = "lipschitz_power_iteration"


@themed
def constants(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Promised, certified and realised constant and the spectral radius, a row per cell."""
    cells = measured(cells, *CONSTANTS)
    if cells.empty:
        return None
    names = list(MODELS)
    order = cells["model"].map(lambda m: names.index(m) if m in names else len(names))
    cells = cells.assign(_order=order).sort_values(["_order", "lipschitz"], kind="stable")
    cells = cells.drop(columns="_order").drop_duplicates(["model", *CONSTANTS]).head(MAX_ROWS)
    shown = [a for a in ("model", "lipschitz", "dim", "dtype") if a in cells]
    if UNALIGNED not in cells:
        cells = cells.assign(**{UNALIGNED: np.nan})
    figure, ax = make_rows(cells, ["model", *varying(cells, shown[1:])], columns)
    ax.invert_yaxis()
    rows = np.arange(len(cells))
    values = cells[list(CONSTANTS)]
    ax.hlines(rows, values.min(axis=1), values.max(axis=1), color=LINE, lw=3, zorder=1)
    for metric, (_, color, marker) in CONSTANTS.items():
        size = {"|": 15, "D": 6.5, "o": 5, "X": 4.5}[marker]
        face = PAPER if marker == "D" else color
        edge = 2 if marker == "|" else 1.3 if marker == "D" else 0
        ax.plot(
            cells[metric], rows, marker, color=color, mfc=face, ms=size, mew=edge, clip_on=False
        )
    broken = (cells[UNALIGNED] > cells["lipschitz_promised"] * (1 + 1e-6)).to_numpy()
    ax.plot(cells[UNALIGNED][broken], rows[broken], "v", color=PINK, ms=6, mew=0, clip_on=False)
    ax.set_xlim(0, max(1.0, 1.03 * np.nanmax([values.max().max(), cells[UNALIGNED].max()])))
    ax.set_xlabel("constant of the branch")
    handles = [
        Line2D([], [], color=c, marker=m, ls="", label=text, mfc=PAPER if m == "D" else c, mew=1.3)
        for text, c, m in CONSTANTS.values()
    ]
    if broken.any():
        text = "power iteration"
        handles.append(Line2D([], [], color=PINK, marker="v", ls="", label=text))
    add_legend(figure, handles)
    return figure


PICTURES = (
    Picture(
        "lipschitz",
        constants,
        "From right to left: the promised constant, the product of the layers' norms by SVD, the "
        "largest ‖J(x)‖₂ over the points, and the spectral radius, which alone decides how fast "
        "the series converges asymptotically. For a flow the worst block is shown. A triangle "
        "beyond the promised constant marks the certified constant as the training's last update "
        "left it; all other numbers are of norms aligned by SVD.",
    ),
)
