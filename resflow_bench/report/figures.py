"""One function per figure: cells in (`tables.wide`), a figure `columns` panels wide out.

None comes back where there is nothing to draw. Conventions, the same everywhere: the trained flow
is the heavy vermilion one; the other models are Okabe-Ito colours, each with its own shape, so that
colour is never alone; an open triangle pointing down says "here or below", which is also how a
logarithmic axis shows zero, on its lower edge. The neutral colours INK, MUTED, LINE and PAPER stand
for those of the page, which puts its own in their place to follow its theme.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from resflow_bench.analysis.tables import axes, decay, label, number, varying

Draw = Callable[[pd.DataFrame, int], Figure | None]

INK, MUTED, LINE, PAPER = "#1f2328", "#6a737d", "#d7dbe0", "#fefefe"
BLUE, ORANGE, GREEN, ACCENT, PINK, BROWN, _, GREY, _, SKY = sns.color_palette("colorblind").as_hex()
MODELS = {
    "trained": (ACCENT, "o"),
    "init": (ORANGE, "h"),
    "minus-identity": (BLUE, "s"),
    "plus-identity": (SKY, "^"),
    "orthogonal": (GREEN, "D"),
    "symmetric": (PINK, "P"),
    "gaussian": (BROWN, "X"),
    "triangular": (GREY, ">"),
}
PANEL, PANEL_HEIGHT, ROW = 3.5, 2.7, 0.26  # inches; at 96 pixels each, text of 9 pt is 12 pixels
DASHES = (0, (4, 2))
MAX_PANELS, MAX_ROWS = 6, 24
DECADES = 7
"""Of bias on one axis: what is smaller is of no interest to anyone."""
ALMOST_NO_VARIANCE = 1e-12
"""nat^2: below this a sample variance is rounding, and its ratio to a closed form is noise."""
THEME = {
    **sns.axes_style("ticks"),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: searchable, read aloud, in the page's colour
}


def themed(draw: Draw) -> Draw:
    """`draw` on the cells that were measured, in the report's style."""

    @functools.wraps(draw)
    def drawn(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
        with mpl.rc_context(THEME):
            return draw(cells[cells["status"] == "ok"], columns)

    return drawn


@themed
def bias(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """|bias| / d against the number of terms, a panel for each Lipschitz constant."""
    cells = _with(cells, "bias", "bias_expected", "bias_bound", "n_terms", "dim", "lipschitz")
    if cells.empty:
        return None
    constants = _spread(sorted(cells["lipschitz"].unique()), MAX_PANELS)
    figure, panels = _panels(len(constants), columns)
    names = _models(cells)
    for ax, constant in zip(panels, constants, strict=True):
        here = cells[cells["lipschitz"] == constant]
        dim = here["dim"].astype(float)
        bounds = (here["bias_bound"] / dim).groupby([here["model"], here["n_terms"]]).max()
        expected = here["bias_expected"].abs() / dim
        low, high = here["bias_low"] / dim, here["bias_high"] / dim
        unresolved = (low <= 0) & (high >= 0)
        size = np.where(unresolved, np.maximum(-low, high), here["bias"].abs() / dim)
        size = pd.Series(size, here.index)
        floor = _log_axis(ax, "y", [expected, bounds, size], DECADES)
        for curve, owners in _shared(bounds).items():
            color = ACCENT if owners <= {"trained", "init"} else INK
            terms, heights = zip(*curve, strict=True)
            ax.plot(terms, heights, color=color, lw=1.1, ls=DASHES)
        for place, name in enumerate(names):
            mine = here["model"] == name
            curve = expected[mine].groupby(here["n_terms"]).first().sort_index()
            color, _ = MODELS.get(name, (GREY, "o"))
            heavy = name == "trained"
            ax.plot(
                curve.index.astype(float),
                curve.where(curve > 0),
                color=color,
                lw=2.4 if heavy else 1.1,
                alpha=1.0 if heavy else 0.75,
            )
            dodge = 1 + 0.09 * (place - (len(names) - 1) / 2) / max(len(names), 4)
            terms = here["n_terms"].astype(float) * dodge
            ends = np.abs([low, high])
            _points(
                ax,
                name,
                (terms, size.clip(lower=floor)),
                (np.maximum(ends.min(axis=0), floor), np.maximum(ends.max(axis=0), floor)),
                shown=mine.to_numpy(),
                below=(unresolved | (size <= floor)).to_numpy(),
            )
        _count_axis(ax, here["n_terms"])
        ax.set(title=f"K = {constant:g}", xlabel="terms N")
    _outer(panels, columns, "|bias| / d  (nat)")
    _legend(
        figure,
        [
            *_model_handles(names),
            Line2D([], [], color=INK, lw=1.1, ls=DASHES, label="bound from K alone"),
            Line2D([], [], color=MUTED, lw=1.5, label="theory, no sampling"),
            _below_handle("not told from zero: at most"),
        ],
    )
    return figure


@themed
def variance(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Measured over closed-form variance with its interval, cells by model and closed form."""
    cells = _with(cells, "variance", "variance_expected")
    if len(cells):
        expected = cells["variance_expected"]
        cells = cells[(expected > ALMOST_NO_VARIANCE) & np.isfinite(expected)]
    if cells.empty:
        return None
    names = _models(cells)
    place = cells["model"].map({name: -i for i, name in enumerate(names)})
    cells = cells.assign(_place=place).sort_values(["_place", "variance_expected"])
    figure, (ax,) = _panels(1, 1, width=columns * PANEL, height=3.0)
    expected, order = cells["variance_expected"], pd.Series(np.arange(len(cells)), cells.index)
    low, value, high = (cells[m] / expected for m in ("variance_low", "variance", "variance_high"))
    finite = np.abs(np.concatenate([low - 1, high[np.isfinite(high)] - 1]))
    reach = 1.15 * np.quantile(finite, 0.98)
    ends = (low.clip(lower=1 - 9 * reach), high.clip(upper=1 + 9 * reach))
    ax.axhline(1, color=INK, lw=1)
    for name in names:
        _points(ax, name, (order, value), ends, shown=(cells["model"] == name).to_numpy())
    ax.set(ylim=(1 - reach, 1 + reach), xlim=(-1, len(cells)), xticks=[])
    ax.set(xlabel="cells, by model and closed form", ylabel="measured / closed form")
    _legend(figure, _model_handles(names))
    return figure


CHAIN = {
    "variance_expected": ("closed form", INK, "|"),
    "variance_bound": ("Avron–Toledo", BLUE, "o"),
    "variance_bound_lipschitz": ("from K alone", GREEN, "s"),
    "variance_bound_printed": ("as printed: no bound", PINK, "X"),
}


@themed
def bounds(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """The chain measured <= Avron-Toledo <= Lipschitz-only, one row per model and probe."""
    cells = _with(cells, "variance", *list(CHAIN)[:3])
    cells = cells[(cells["truncation"] == "fixed") & np.isfinite(cells["variance_expected"])]
    if cells.empty:
        return None
    hard = ["lipschitz", "n_terms", "dim"]
    cells = cells[cells["n_probes"] == cells["n_probes"].min()]
    cells = cells.sort_values(hard).drop_duplicates(["model", "probe"], keep="last")
    cells = cells.sort_values(["variance_bound_lipschitz", "variance_bound", "variance"])
    names = [c for c in CHAIN if c in cells]
    figure, ax = _rows(cells, [*varying(cells, ["model", *hard])], columns, suffix="probe")
    floor = _log_axis(ax, "x", [cells[n] for n in ("variance", *names)])
    rows = np.arange(len(cells))
    ends = cells[["variance", *names[:3]]].clip(lower=floor)
    ax.hlines(rows, ends.min(axis=1), ends.max(axis=1), color=LINE, lw=3, zorder=1)
    for metric in names:
        _, color, marker = CHAIN[metric]
        hollow = marker in "os"
        ax.plot(
            cells[metric].clip(lower=floor),
            rows,
            marker,
            color=color,
            mfc=PAPER if hollow else color,
            ms=11 if marker == "|" else 6.5,
            mew=2 if marker == "|" else 1.3 if hollow else 0,
        )
    told = (cells["variance"] > floor).to_numpy()
    low, high = (cells[m].clip(lower=floor) for m in ("variance_low", "variance_high"))
    ax.hlines(rows[told], low[told], high[told], color=ACCENT, lw=2)
    value = cells["variance"].clip(lower=floor)
    ax.plot(value[told], rows[told], "o", color=ACCENT, ms=5, mec=PAPER, mew=0.5)
    _edge_marks(ax, value[~told], rows[~told], ACCENT)
    words = f"variance of one draw (nat²)\n{_common(cells, [*hard, 'n_probes'])}"
    figure.supxlabel(words, size=9)  # centred on the figure: it is wider than a phone's panel
    measured = Line2D([], [], color=ACCENT, marker="o", ls="", ms=5, label="measured")
    handles = [
        Line2D(
            [], [], color=c, marker=m, ls="", ms=7, label=text, mew=1.4,
            mfc=PAPER if m in "os" else c,
        )
        for text, c, m in (CHAIN[n] for n in names)
    ]  # fmt: skip
    _legend(figure, [measured, *handles, _below_handle("zero")])
    return figure


@themed
def roulette(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Finite or infinite variance: spectral radius against the stop probability, and Poisson."""
    cells = _with(cells, "variance_is_finite", "roulette", "spectral_radius")
    if cells.empty:
        return None
    figure, (ax,) = _panels(1, 1, width=min(columns, 2) * PANEL, height=3.0)
    stop = np.linspace(0, 1, 201)
    edge = np.sqrt(1 - stop)
    ax.fill_between(stop, edge, 1, color=ACCENT, alpha=0.13, lw=0)
    ax.axvspan(1.06, 1.24, color=ACCENT, alpha=0.13, lw=0)
    ax.plot(stop, edge, color=INK, lw=1.2)
    ax.annotate("ρ² = 1 − stop", (0.42, math.sqrt(0.58)), (3, 4), textcoords="offset points")
    ax.text(0.97, 0.94, "infinite", ha="right", color=ACCENT, weight="bold")
    ax.text(0.03, 0.06, "finite", color=BLUE, weight="bold")
    ratio = cells["roulette"].map(decay)
    names = _models(cells)
    place = cells["model"].map({name: i for i, name in enumerate(names)})
    x = np.where(ratio > 0, 1 - ratio, 1.15) + 0.012 * (place - (len(names) - 1) / 2)
    for finite, color, marker in ((1, BLUE, "o"), (0, ACCENT, "X")):
        mine = cells["variance_is_finite"] == finite
        for strong in (False, True):
            some = mine & ((cells["model"] == "trained") == strong)
            ax.plot(
                x[some],
                cells["spectral_radius"][some],
                marker,
                color=color,
                ms=9 if strong else 6,
                mec=INK if strong else PAPER,
                mew=1.2 if strong else 0.5,
                clip_on=False,
            )
    ax.set(xlim=(0, 1.24), ylim=(0, 1), xlabel="stop probability", ylabel="spectral radius ρ")
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1, 1.15], ["0", ".25", ".5", ".75", "1", "Poisson"])
    handles = [
        Line2D([], [], color=BLUE, marker="o", ls="", label="finite"),
        Line2D([], [], color=ACCENT, marker="X", ls="", label="infinite"),
        Line2D([], [], color=INK, marker="o", mfc="none", ms=8, ls="", label="trained flow"),
    ]
    _legend(figure, handles)
    return figure


@themed
def inverse(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """The inverse's error against its certificate, and its steps against Banach's count."""
    cells = _with(cells, "inverse_error", "inverse_error_bound")
    if cells.empty:
        return None
    pairs = [("inverse_error_bound", "inverse_error", "certificate", "error", "‖x̂ − x‖")]
    if {"n_steps", "n_steps_bound"} <= set(cells):
        pairs.append(("n_steps_bound", "n_steps", "Banach's count", "steps", "steps"))
    figure, panels = _panels(len(pairs), columns, height=3.2)
    for ax, (bound, metric, against, word, title) in zip(panels, pairs, strict=True):
        some = cells.dropna(subset=[bound, metric])
        some = some[np.isfinite(some[bound])]
        edges = [_log_axis(ax, xy, [some[m]]) for xy, m in (("x", bound), ("y", metric))]
        x, y = some[bound].clip(lower=edges[0]), some[metric].clip(lower=edges[1])
        ends = np.array([min(edges) / 2, max(x.max(), y.max()) * 2])
        ax.plot(ends, ends, color=INK, lw=1.1)
        ax.fill_between(ends, ends, ends[1] * 1e3, color=ACCENT, alpha=0.13, lw=0)
        ax.set(xlim=(edges[0] / 1.5, x.max() * 2), ylim=(edges[1] / 1.5, ends[1]))
        ax.text(0.03, 0.95, "statement violated", transform=ax.transAxes, color=ACCENT, va="top")
        for name in _models(some):
            for dtype in ("float32", "float64"):
                mine = ((some["model"] == name) & (some["dtype"] == dtype)).to_numpy()
                below = (some[metric] <= edges[1]).to_numpy()
                hollow = dtype == "float32"
                _points(ax, name, (x, y), None, shown=mine, below=below, hollow=hollow)
        ax.set(xlabel=against, ylabel=word, title=title)
    handles = _model_handles(_models(cells))
    _legend(figure, [*handles, *_dtype_handles(cells)])
    return figure


@themed
def convergence(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Error of the inverse after so many steps, its certificate and Banach's rate."""
    cells = _with(cells, "inverse_error", "inverse_error_bound", "inverse_error_banach")
    if cells.empty:
        return None
    pairs = cells[["model", "lipschitz"]].drop_duplicates()
    rank = pairs.groupby("model")["lipschitz"].rank(ascending=False)
    order = pairs["model"].map({name: i for i, name in enumerate(MODELS)}).fillna(len(MODELS))
    pairs = pairs.assign(rank=rank, order=order).sort_values(["rank", "order"]).head(MAX_PANELS)
    figure, panels = _panels(len(pairs), columns)
    for ax, (_, pair) in zip(panels, pairs.iterrows(), strict=True):
        here = cells[(cells["model"] == pair["model"]) & (cells["lipschitz"] == pair["lipschitz"])]
        here = here.sort_values("max_steps")
        known, rates = here[["inverse_error", "inverse_error_bound"]], here["inverse_error_banach"]
        floor = _log_axis(ax, "y", [known.stack(), rates[rates > known.max(axis=1)]])
        for dtype, some in here.groupby("dtype"):
            steps, error = some["max_steps"].astype(float), some["inverse_error"]
            hollow = dtype == "float32"
            ax.plot(steps, some["inverse_error_banach"], color=INK, lw=1.1, ls=DASHES)
            style = ":" if hollow else "-"
            ax.plot(steps, some["inverse_error_bound"], color=BLUE, lw=1.2, ls=style)
            _points(
                ax,
                pair["model"],
                (steps, error.clip(lower=floor)),
                None,
                below=(error <= floor).to_numpy(),
                hollow=hollow,
            )
        _count_axis(ax, here["max_steps"])
        ax.set(title=f"{pair['model']}, K = {pair['lipschitz']:g}", xlabel="steps")
    _outer(panels, columns, "‖x̂ − x‖")
    handles = [
        Line2D([], [], color=INK, lw=1.1, ls=DASHES, label="Banach's rate"),
        Line2D([], [], color=BLUE, lw=1.2, label="certificate, float64"),
        Line2D([], [], color=BLUE, lw=1.2, ls=":", label="certificate, float32"),
        *_dtype_handles(cells),
    ]
    _legend(figure, handles)
    return figure


CONSTANTS = {
    "lipschitz_promised": ("promised", INK, "|"),
    "lipschitz_certified": ("certified", BLUE, "D"),
    "lipschitz_realised": ("realised ‖J‖₂", ACCENT, "o"),
    "spectral_radius": ("spectral radius ρ", GREEN, "X"),
}


@themed
def lipschitz(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Promised, certified and realised constant and the spectral radius, a row per cell."""
    cells = _with(cells, *CONSTANTS)
    if cells.empty:
        return None
    names = list(MODELS)
    order = cells["model"].map(lambda m: names.index(m) if m in names else len(names))
    cells = cells.assign(_order=order).sort_values(["_order", "lipschitz"], kind="stable")
    cells = cells.drop(columns="_order").drop_duplicates(["model", *CONSTANTS]).head(MAX_ROWS)
    shown = [a for a in ("model", "lipschitz", "dim", "dtype") if a in cells]
    figure, ax = _rows(cells, ["model", *varying(cells, shown[1:])], columns)
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
    ax.set_xlim(0, max(1.0, 1.03 * values.max().max()))
    ax.set_xlabel("constant of the branch")
    handles = [
        Line2D([], [], color=c, marker=m, ls="", label=text, mfc=PAPER if m == "D" else c, mew=1.3)
        for text, c, m in CONSTANTS.values()
    ]
    _legend(figure, handles)
    return figure


@themed
def throughput(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Examples a second, a panel for each operation, with the share of the peak written."""
    cells = _with(cells, "examples_per_s", "operation")
    if cells.empty:
        return None
    operations = list(dict.fromkeys(cells["operation"]))
    rows = min(int(cells["operation"].value_counts().max()), MAX_ROWS)
    figure, panels = _panels(len(operations), columns, height=0.8 + 0.58 * rows)
    for ax, operation in zip(panels, operations, strict=True):
        here = cells[cells["operation"] == operation].head(MAX_ROWS)
        shown = [a for a in varying(cells, axes(cells)) if a != "operation"]
        rate = here["examples_per_s"]
        places = np.arange(len(here))
        colors = [MODELS.get(m, (GREY, ""))[0] for m in here["model"]]
        ax.barh(places, rate, 0.3, color=colors)
        if "examples_per_s_low" in here:
            low, high = here["examples_per_s_low"], here["examples_per_s_high"]
            ax.hlines(places, low, high, color=INK, lw=1.4)
        for place, (_, cell) in zip(places, here.iterrows(), strict=True):
            share = cell.get("flops_fraction", math.nan)
            peak = "" if math.isnan(share) else f" · {share:.1%} of peak"
            text = f"{label(cell, shown)}\n{number(cell['examples_per_s'])} /s{peak}"
            ax.text(0, place - 0.19, text, va="bottom", size=8, linespacing=1.25)
        ax.set(title=operation, yticks=[], ylim=(len(here) - 0.7, -0.85), xlabel="examples / s")
        ax.set_xlim(0, 1.05 * rate.max())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, 2)))
        ax.locator_params(axis="x", nbins=4)
        ax.spines["left"].set_visible(False)
        ax.grid(False, axis="y")
    return figure


def _with(cells: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The cells that have all of these columns; none where one is missing."""
    if not set(columns) <= set(cells):
        return cells.head(0)
    return cells.dropna(subset=list(columns))


def _models(cells: pd.DataFrame) -> list[str]:
    """Those measured, the trained flow last so that it is drawn on top."""
    found = set(cells["model"])
    others = sorted(found - set(MODELS))
    return [name for name in reversed(MODELS) if name in found and name != "trained"] + [
        *others,
        *(["trained"] if "trained" in found else []),
    ]


def _panels(
    count: int, columns: int, width: float = 0.0, height: float = PANEL_HEIGHT
) -> tuple[Figure, list[Axes]]:
    """`count` panels, at most `columns` in a row; where they are fewer, each is wider."""
    across = min(columns, count)
    width = width or PANEL * min(1.5, columns / across)
    down = math.ceil(count / across)
    figure = Figure((width * across, height * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for ax in grid[count:]:
        ax.remove()
    return figure, list(grid[:count])


def _rows(
    cells: pd.DataFrame, names: list[str], columns: int, suffix: str = ""
) -> tuple[Figure, Axes]:
    """One wide panel with a named line for each cell; the trained flow's names stand out."""
    labels = [label(cell, names) for _, cell in cells.iterrows()]
    if suffix:
        labels = [f"{t}, {v} {suffix}" for t, v in zip(labels, cells[suffix], strict=True)]
    figure, (ax,) = _panels(1, 1, width=columns * PANEL, height=0.75 + ROW * len(cells))
    ax.set_yticks(range(len(cells)), labels)
    for text, model in zip(ax.get_yticklabels(), cells["model"], strict=True):
        text.set_fontweight("bold" if model == "trained" else "normal")
    ax.set_ylim(-0.6, len(cells) - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    return figure, ax


def _points(
    ax: Axes,
    model: str,
    at: tuple[pd.Series, pd.Series],
    ends: np.ndarray | tuple[Any, Any] | None,
    *,
    shown: np.ndarray | None = None,
    below: np.ndarray | None = None,
    hollow: bool = False,
) -> None:
    """The model's marks at `at` with intervals `ends`; where `below`, an open triangle instead."""
    color, marker = MODELS.get(model, (GREY, "o"))
    heavy = model == "trained"
    x, y = (np.asarray(values, float) for values in at)
    shown = np.ones(len(x), bool) if shown is None else shown
    below = np.zeros(len(x), bool) if below is None else below
    told = shown & ~below
    if ends is not None:
        low, high = (np.asarray(values, float)[told] for values in ends)
        ax.vlines(x[told], low, high, color=color, lw=1.8 if heavy else 1.1)
    size = 6.0 if heavy else 5.0
    face = PAPER if hollow else color
    edge = {"mec": color, "mew": 1.1} if hollow else {"mec": PAPER, "mew": 0.4}
    ax.plot(x[told], y[told], marker, color=color, ms=size, mfc=face, ls="", **edge)
    _edge_marks(ax, x[shown & below], y[shown & below], color)


def _edge_marks(ax: Axes, x: np.ndarray, y: np.ndarray, color: str) -> None:
    """Open triangles, whole even where they stand on the frame."""
    (marks,) = ax.plot(x, y, "v", mfc="none", mec=color, ms=5.5, clip_on=False)
    marks.set_in_layout(False)


def _log_axis(ax: Axes, xy: str, values: Iterable[pd.Series], decades: float = math.inf) -> float:
    """Makes axis `xy` logarithmic; its lower edge, where zero is drawn, comes back."""
    flat = np.concatenate([np.asarray(v, float) for v in values])
    flat = flat[np.isfinite(flat) & (flat > 0)]
    top = flat.max() if len(flat) else 1.0
    low = max(flat.min(), top * 10.0**-decades) if len(flat) else 0.1
    floor = 10.0 ** math.floor(math.log10(low) - 0.15)
    ax.set(**{f"{xy}scale": "log"})
    ax.set(**{f"{xy}lim": (0.8 * floor, 10 ** (math.log10(top) + 0.2))})
    axis = ax.xaxis if xy == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: _power(v)))
    return floor


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    if -2 <= exponent <= 3:
        return f"{10.0**exponent:,g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _count_axis(ax: Axes, counts: pd.Series) -> None:
    ax.set_xscale("log")
    low, high = float(counts.min()), float(counts.max())
    ax.set_xlim(low / 1.25, high * 1.25)
    ax.xaxis.set_major_locator(FixedLocator(_spread(sorted(counts.astype(float).unique()), 8)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _outer(panels: Sequence[Axes], columns: int, ylabel: str) -> None:
    """The y label on the panels of the first column alone."""
    for ax in panels[:: min(columns, len(panels))]:
        ax.set_ylabel(ylabel)


def _spread(values: list[float], count: int) -> list[float]:
    """At most `count` of them, evenly spread, the first and the last among them."""
    if len(values) <= count:
        return values
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, count)]


def _shared(curves: pd.Series) -> dict[tuple[tuple[float, float], ...], set[str]]:
    """Each distinct curve among those of the models (the index' first level), and whose it is."""
    owners: dict[tuple[tuple[float, float], ...], set[str]] = {}
    for name in curves.index.unique(0):
        owners.setdefault(tuple(curves[name].items()), set()).add(name)
    return owners


def _common(cells: pd.DataFrame, names: list[str]) -> str:
    """The values of these axes that all cells share, in words."""
    shared = [name for name in names if cells[name].nunique(dropna=False) == 1]
    return label(cells.iloc[0], shared)


def _model_handles(names: list[str]) -> list[Artist]:
    return [
        Line2D([], [], color=color, marker=marker, ls="", ms=6, label=name)
        for name, (color, marker) in ((n, MODELS.get(n, (GREY, "o"))) for n in reversed(names))
    ]


def _dtype_handles(cells: pd.DataFrame) -> list[Artist]:
    return [
        Line2D([], [], color=MUTED, marker="o", mfc=face, ls="", ms=6, label=f"error, {dtype}")
        for dtype, face in (("float32", PAPER), ("float64", MUTED))
        if (cells["dtype"] == dtype).any()
    ]


def _below_handle(text: str) -> Artist:
    return Line2D([], [], color=MUTED, marker="v", mfc="none", ls="", ms=5, label=text)


def _legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Above the panels, and the figure grows by what it takes."""
    width, height = figure.get_size_inches()
    across = min(len(handles), round(width / 1.75))
    figure.set_size_inches(width, height + 0.19 * math.ceil(len(handles) / across) + 0.1)
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=across,
        columnspacing=1.4,
        handletextpad=0.5,
        borderpad=0.1,
    )
