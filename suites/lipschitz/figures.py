"""The constants of a branch: promised, certified, realised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from resflow_bench.analysis.tables import varying
from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import MODELS, drawn_from, entry, make_rows

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
    """Promised, certified and realised constant and the spectral radius, a row per cell."""
    cells = cells.assign(**dict.fromkeys({*CONSTANTS, UNALIGNED} - set(cells), np.nan))
    order = cells["model"].map({name: i for i, name in enumerate(MODELS)}).fillna(len(MODELS))
    cells = cells.assign(_order=order).sort_values(["_order", "lipschitz"], kind="stable")
    cells = cells.drop_duplicates(["model", *CONSTANTS]).head(style.MAX_ROWS)
    shown = [axis for axis in ("lipschitz", "dim", "dtype") if axis in cells]
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
    beyond, at = cells[UNALIGNED][broken], rows[broken]
    look = {"color": style.PINK, "ms": 6, "mew": 0, "label": "power iteration"}
    ax.plot(beyond, at, "v", **look, clip_on=False)
    ax.set_xlim(0, style.largest(1.03 * values, 1.03 * cells[UNALIGNED], least=1.0))
    ax.set_xlabel("constant of the branch")
    if broken.any():
        handles.append(entry("power iteration", style.PINK, marker="v", ls=""))
    style.add_legend(figure, handles)
    return figure


PICTURES = (
    Picture(
        "lipschitz",
        constants,
        "Constants of a branch g, a row for each model. In theory a row shows from right to left: "
        "the promised constant K; the certified one, the product of the layers' norms by SVD; the "
        "largest ‖J(x)‖₂ over the points; and the spectral radius, which alone decides how fast "
        "the series converges in the end. A long grey line means that the flow uses little of what "
        "it is promised. For a flow the worst block is shown. A triangle "
        "beyond the promised constant marks the certified constant as the training's last update "
        "left it; all other numbers are of norms aligned by SVD.",
    ),
)
