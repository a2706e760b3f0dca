"""The constants of a branch: promised, certified, realised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from resflow_bench.analysis.tables import varying
from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import FLOWS, MODELS, drawn_from, entry, make_rows

CONSTANTS = {
    "lipschitz_promised": ("promised", style.INK, "|", 15, 2),
    "lipschitz_certified": ("certified", style.BLUE, "D", 6.5, 1.3),
    "lipschitz_realised": ("realised ‖J‖₂", style.ACCENT, "o", 5, 0),
    "spectral_radius": ("spectral radius ρ", style.GREEN, "X", 4.5, 0),
}
"""Metric to its name in the legend, and the colour, shape, size and edge of its marks."""


UNALIGNED = "lipschitz_power_iteration"


@drawn_from("lipschitz_realised", "spectral_radius")
def constants(cells: pd.DataFrame, columns: int) -> Figure | None:
    """Promised, certified and realised constant and the spectral radius, a row per model and K."""
    cells = cells.assign(**dict.fromkeys({*CONSTANTS, UNALIGNED} - set(cells), np.nan))
    order = cells["model"].map({name: i for i, name in enumerate(MODELS)}).fillna(len(MODELS))
    known = [axis for axis in ("lipschitz", "dim", "dtype") if axis in cells]
    cells = cells.assign(_order=order).sort_values(["_order", *known], kind="stable")
    shown = [axis for axis in known if axis != "dtype"]
    cells = cells.drop_duplicates(["model", *shown], keep="last")  # float64 comes last
    linear = cells["model"].isin(set(MODELS) - FLOWS)
    smaller = cells.duplicated(["model", *shown[1:]], keep="last")
    cells = cells[~(linear & smaller)].head(style.MAX_ROWS)
    figure, ax = make_rows(cells, ["model", *varying(cells, shown)], columns)
    ax.invert_yaxis()
    rows = np.arange(len(cells))
    values = cells[list(CONSTANTS)].replace(np.inf, np.nan)
    ax.hlines(
        rows,
        values.min(axis=1),
        values.max(axis=1),
        color=style.LINE,
        lw=3,
        zorder=1,
        label="range",
    )
    handles = []
    for metric, (text, color, marker, size, edge) in CONSTANTS.items():
        face, value = style.PAPER if marker == "D" else color, cells[metric]
        look: dict[str, Any] = {"color": color, "mfc": face, "ms": size, "mew": edge, "label": text}
        ax.plot(value, rows, marker, **look, clip_on=False)
        handles.append(entry(text, color, marker=marker, ls="", mfc=face, mew=1.3))
    broken = (cells[UNALIGNED] > cells["lipschitz_promised"] * (1 + 1e-6)).to_numpy()
    ax.set_xlim(0, style.largest(1.03 * values, 1.03 * cells[UNALIGNED], least=1.0))
    ax.set_xlabel("constant of the branch")
    if broken.any():
        beyond, said = cells[UNALIGNED][broken], "as power iteration left it"
        look = {"color": style.PINK, "ms": 6, "mew": 0, "label": said, "clip_on": False}
        ax.plot(beyond, rows[broken], "v", **look)
        handles.append(entry(said, style.PINK, marker="v", ls=""))
    style.add_legend(figure, handles)
    return figure


PICTURES = (
    Picture(
        "lipschitz",
        constants,
        "Constants of a branch g, a row for each model and each promised K; for a linear map, "
        "whose constants scale with K, only the largest K. Where both dtypes were measured, "
        "float64 is shown. In theory a row shows from right to left: "
        "the promised constant K; the certified one, the product of the layers' norms by SVD; the "
        "largest ‖J(x)‖₂ over the points; and the spectral radius, which alone decides how fast "
        "the series converges in the end. A long grey line means that the flow uses little of what "
        "it is promised; a single mark, that all of them coincide. For a flow the worst block is "
        "shown.",
    ),
)
